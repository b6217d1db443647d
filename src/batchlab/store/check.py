"""What is damaged in a store: every file and every row looked at, nothing changed."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from batchlab.spec import TrainSpec, UserError, parse_spec
from batchlab.store.address import DIRECTORIES, files_at
from batchlab.store.checkpoints import SUFFIX, Checkpoints, key_of
from batchlab.store.connection import Connection
from batchlab.store.digest import digest
from batchlab.store.files import TEMPORARY, UnreachableError, is_temporary_name, within
from batchlab.store.schema import FIELDS, FILE, TABLES, read, sealed

KILLED = "left by a writer that was killed"
SPEC = "spec"  # the text of a checkpoint that says which trajectory it is the end of


class Damage(NamedTuple):
    """Something in a store that is not as it was written."""

    kind: str  # database, run, request, checkpoint, partial, leftover
    name: str  # of a file, within the store or its address; of a run, its key
    problem: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}: {self.problem}"


def check(root: Path, address: str | None = None) -> list[Damage]:
    """All that is damaged in a store, and in its checkpoints at an address if it has any there.

    Raises `UserError` where there is no store or none that can be read, or no such address.
    """
    elsewhere = [] if address is None else address_damage(address)
    return [*database_damage(root), *file_damage(root), *elsewhere]


def database_damage(root: Path) -> Iterator[Damage]:
    """What is wrong with the database: its pages, runs and requests, and whether all are there.

    Raises `UserError` where it is of another program or a newer version.
    """
    try:
        connection = Connection(root, create_it=False)
    except UserError as error:
        if "damaged" not in str(error):
            raise
        yield Damage("database", FILE, _brief(str(error)))
        return
    db = connection.db
    try:
        for (line,) in db.execute("PRAGMA integrity_check(20)").fetchall():
            if line != "ok":
                yield Damage("database", FILE, " ".join(line.split()))
        for number in _numbers(db, "run"):
            key, problem = run_problem(db, number)
            if problem:
                yield Damage("run", key, problem)
        for number in _numbers(db, "request"):
            _, problem = request_problem(db, number)
            if problem:
                yield Damage("request", str(number), problem)
        for table in TABLES:
            sql = f"SELECT count(*) FROM {table} WHERE run NOT IN (SELECT id FROM run)"
            if strays := db.execute(sql).fetchone()[0]:
                yield Damage("database", FILE, f"{strays:,} rows of {table}s are of no run")
        _, *told = sealed(db)
        if [tuple(told)] != db.execute("SELECT * FROM seal").fetchall():
            yield Damage("database", FILE, "its rows are not all that were written")
    except (sqlite3.Error, UnicodeError, OverflowError) as error:
        yield Damage("database", FILE, str(error))
    finally:
        db.close()


def file_damage(root: Path) -> Iterator[Damage]:
    """What is wrong with the checkpoints, and what killed writers left."""
    for path in sorted(root.glob(f"{FILE}.*")):
        yield Damage("leftover", path.name, "left by a process that was killed")
    for name in DIRECTORIES:
        kind = name.removesuffix("s")
        try:
            checkpoints = Checkpoints(within(root, name))
        except UserError as error:
            yield Damage(kind, name, str(error).partition(": ")[2])
            continue
        for file in checkpoints.files():
            if problem := _checkpoint_problem(checkpoints, file.removesuffix(SUFFIX)):
                yield Damage(kind, f"{name}/{file}", problem)
        for file in checkpoints.others():
            what = KILLED if file.endswith(TEMPORARY) else "nothing of a store's"
            yield Damage("leftover", f"{name}/{file}", what)


def address_damage(address: str) -> Iterator[Damage]:
    """The same of checkpoints at an address. Others may keep their own files there: not named.

    Raises `UnreachableError` where they can't be read now: that is no damage.
    """
    for name in DIRECTORIES:
        checkpoints = Checkpoints(files_at(address, name))
        for file in checkpoints.files():
            key = key_of(file)
            if key is not None and (problem := _checkpoint_problem(checkpoints, key)):
                yield Damage(name.removesuffix("s"), f"{address}/{name}/{file}", problem)
        for file in filter(is_temporary_name, checkpoints.others()):
            yield Damage("leftover", f"{address}/{name}/{file}", KILLED)


def run_problem(db: sqlite3.Connection, number: int) -> tuple[str, str | None]:
    """A run's key, and what is wrong with it; `None` where all is as it was written."""
    key = f"number {number}"
    try:
        row = run_row(db, number)
        if row is None:
            return key, "can't be found"
        *fields, known = row
        told = dict(zip(FIELDS, fields, strict=True))
        key = str(told["key"])
        if digest(*fields) != known:
            return key, "its row is not what was written"
        if parse_spec(told["spec"]).key != key:
            return key, "its key is not its spec's"
        for table in TABLES:
            if read(db, table, number).digest() != told[f"{table}s"]:
                return key, f"its {table}s are not what was written"
    except (sqlite3.Error, ValueError, OverflowError, TypeError) as error:
        return key, f"can't be read ({' '.join(str(error).split())})"
    return key, None


def run_row(db: sqlite3.Connection, number: int) -> tuple[Any, ...] | None:
    """All that is digested of a run, and the digest."""
    sql = f"SELECT {', '.join(FIELDS)}, digest FROM run WHERE id = ?"
    found: tuple[Any, ...] | None = db.execute(sql, (number,)).fetchone()
    return found


def request_problem(db: sqlite3.Connection, number: int) -> tuple[str, str | None]:
    """A request's text, and what is wrong with it, if anything."""
    try:
        sql = "SELECT request, digest FROM request WHERE id = ?"
        text, known = db.execute(sql, (number,)).fetchone()
    except (sqlite3.Error, UnicodeError, TypeError) as error:
        return "", f"can't be read ({' '.join(str(error).split())})"
    return text, None if digest(text) == known else "not what was written"


def _numbers(db: sqlite3.Connection, table: str) -> list[int]:
    return [number for (number,) in db.execute(f"SELECT id FROM {table} NOT INDEXED ORDER BY id")]


def _checkpoint_problem(checkpoints: Checkpoints, key: str) -> str | None:
    try:
        found = checkpoints.load(key)
    except UnreachableError:
        raise
    except UserError as error:
        return _brief(str(error))
    except ValueError as error:
        return str(error)
    if found is None or SPEC not in found[1]:
        return None
    try:
        if TrainSpec.model_validate_json(found[1][SPEC]).key == key:
            return None
    except ValueError:
        pass
    return "not the end of the trajectory that it is named after"


def _brief(said: str) -> str:
    """What an error says is wrong, without where and what to do."""
    said = said[said.index("damaged") :] if "damaged" in said else said
    return said.partition(";")[0]
