"""What is damaged in a store: every file and every row looked at, nothing changed."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from batchlab.spec import TrainSpec, UserError, parse_spec
from batchlab.store.checkpoints import Checkpoints, temporary
from batchlab.store.connection import Connection
from batchlab.store.digest import digest, rows_digest
from batchlab.store.files import within
from batchlab.store.schema import FIELDS, FILE, TABLES, rows_of, sealed

DIRECTORIES = ("checkpoints", "partial")
SPEC = "spec"  # the text of a checkpoint that says which trajectory it is the end of


class Damage(NamedTuple):
    """Something in a store that is not as it was written."""

    kind: str  # database, run, request, checkpoint, partial, leftover
    name: str  # of a file, within the store; of a run, its key
    problem: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}: {self.problem}"


def check(root: Path) -> list[Damage]:
    """All that is damaged; `UserError` where there is no store at all or none that can be read."""
    return [*database_damage(root), *file_damage(root)]


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
        for path in checkpoints.files():
            if problem := _checkpoint_problem(checkpoints, path):
                yield Damage(kind, f"{name}/{path.name}", problem)
        for path in checkpoints.others():
            what = "left by a writer that was killed" if temporary(path) else "nothing of a store's"
            yield Damage("leftover", f"{name}/{path.name}", what)


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
        for table, of in TABLES.items():
            if rows_digest(of, rows_of(db, table, number)) != told[f"{table}s"]:
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


def _checkpoint_problem(checkpoints: Checkpoints, path: Path) -> str | None:
    try:
        found = checkpoints.load(path.stem)
    except UserError as error:
        return _brief(str(error))
    except ValueError as error:
        return str(error)
    if found is None or SPEC not in found[1]:
        return None
    try:
        if TrainSpec.model_validate_json(found[1][SPEC]).key == path.stem:
            return None
    except ValueError:
        pass
    return "not the end of the trajectory that it is named after"


def _brief(said: str) -> str:
    """What an error says is wrong, without where and what to do."""
    said = said[said.index("damaged") :] if "damaged" in said else said
    return said.partition(";")[0]
