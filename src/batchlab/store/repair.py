"""What is whole in a damaged store, put into a new database; the damaged files are kept."""

import shutil
import sqlite3
import tempfile
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple

from batchlab.spec import UserError
from batchlab.store.address import files_at
from batchlab.store.check import (
    Damage,
    check,
    request_problem,
    run_problem,
    run_row,
)
from batchlab.store.database import FILE, Run, Store
from batchlab.store.files import sync_directory
from batchlab.store.owners import living
from batchlab.store.schema import TABLES, VERSION, create, read

DAMAGED = "damaged"  # where the damaged files go
ELSEWHERE = "address"  # ...in it, those that were not in the store
PAGE_COUNT = slice(28, 32)  # in an SQLite file's header, big-endian
MISSES = 1000  # numbers without a run after which no more are looked for


class Repaired(NamedTuple):
    """What became of a store."""

    runs: int  # that are in it now
    dropped: list[Damage]
    copy: Path | None  # the damaged files; `None` where nothing was damaged


def repair(root: Path, address: str | None = None) -> Repaired:
    """Drop what is damaged and nothing else; what is dropped stays in `damaged/`.

    With an `address`, also of the checkpoints there. Raises `UserError` where the store is in use
    or of another program, or where the address can't be reached.
    """
    if not (root / FILE).exists():
        raise UserError(f"store {root}: no store there (no {FILE}); name one that is")
    if living(root):
        raise UserError(f"store {root}: in use; stop what is at work on it, then repair it")
    damage = check(root, address)
    if not damage:
        with Store(root, create=False) as store:
            return Repaired(len(store.states()), [], None)
    copy = root / DAMAGED / time.strftime("%Y-%m-%d-%H%M%S")
    try:
        return _repair(root, address, damage, copy)
    except OSError as error:
        raise UserError(f"store {root}: can't be repaired ({error.strerror})") from None


def _repair(root: Path, address: str | None, damage: list[Damage], copy: Path) -> Repaired:
    copy.mkdir(parents=True)
    dropped = [d for d in damage if d.kind in ("checkpoint", "partial", "leftover")]
    for name in (d.name for d in dropped):
        if address is not None and name.startswith(f"{address}/"):
            *_, directory, file = name.split("/")
            target = copy / ELSEWHERE / directory / file
            target.parent.mkdir(parents=True, exist_ok=True)
            files_at(address, directory).take(file, target)
            continue
        target = copy / name
        target.parent.mkdir(exist_ok=True)
        (root / name).rename(target)
    if len(dropped) == len(damage):
        with Store(root, create=False) as store:
            return Repaired(len(store.states()), dropped, copy)
    _settle(root)
    for path in root.glob(f"{FILE}*"):
        shutil.copy2(path, copy / path.name)
    with tempfile.TemporaryDirectory(dir=root, prefix=f"{FILE}.") as scratch:
        made = Path(scratch) / "made"
        made.mkdir()
        create(made / FILE)
        with Store(made) as store, closing(_readable(copy, Path(scratch))) as db:
            dropped += _salvage(db, store)
            runs = len(store.states())
            store.connection.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        sync_directory(copy)
        # The log of the old file must not be taken for the new one's.
        for end in ("-wal", "-shm"):
            (root / f"{FILE}{end}").unlink(missing_ok=True)
        (made / FILE).replace(root / FILE)
        sync_directory(root)
    return Repaired(runs, dropped, copy)


def _settle(root: Path) -> None:
    """Move what is in the old file's log into the file, as far as that goes."""
    with suppress(sqlite3.Error), closing(sqlite3.connect(root / FILE)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _readable(copy: Path, scratch: Path) -> sqlite3.Connection:
    """The damaged database, opened on a copy, its indices made anew where they can be."""
    db = _opened(copy, scratch)
    with suppress(sqlite3.Error):
        db.execute("REINDEX")
    return db


def _opened(copy: Path, scratch: Path) -> sqlite3.Connection:
    """With a sound schema where its own can't be read."""
    path = scratch / FILE
    for source in copy.glob(f"{FILE}*"):
        shutil.copy2(source, scratch / source.name)
    db = sqlite3.connect(path, isolation_level=None)
    try:
        db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        (pages,) = db.execute("PRAGMA page_count").fetchone()
        (size,) = db.execute("PRAGMA page_size").fetchone()
        if pages * size >= path.stat().st_size:
            return db
    except sqlite3.Error:
        pass
    db.close()
    for end in ("-wal", "-shm"):
        path.with_name(f"{FILE}{end}").unlink(missing_ok=True)
    content = bytearray(path.read_bytes())
    _lay_schema(content, scratch / "sound")
    path.write_bytes(content)
    return sqlite3.connect(path, isolation_level=None)


def _lay_schema(content: bytearray, sound: Path) -> None:
    """The header and the schema of a new store in place of a file's own.

    Every store's tables begin at the same pages, for all are made by the same statements.
    """
    create(sound)
    with closing(sqlite3.connect(sound)) as db:
        (size,) = db.execute("PRAGMA page_size").fetchone()
        roots = {page for (page,) in db.execute("SELECT rootpage FROM sqlite_master")}
    whole = sound.read_bytes()
    for page in range(len(whole) // size):
        if page + 1 not in roots:
            content[page * size : (page + 1) * size] = whole[page * size : (page + 1) * size]
    content[PAGE_COUNT] = (len(content) // size).to_bytes(4, "big")


def _salvage(db: sqlite3.Connection, store: Store) -> list[Damage]:
    """Copy all that is whole; what was not."""
    dropped = []
    try:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master")}
    except sqlite3.Error as error:
        return [Damage("database", FILE, f"nothing in it can be read ({error})")]
    if version != VERSION or not {"run", "request"} <= tables:
        return [Damage("database", FILE, "nothing in it can be read")]
    misses, number, last = 0, 0, _last(db, "run")
    while number < last if last is not None else misses < MISSES:
        number += 1
        key, problem = run_problem(db, number)
        if problem is None:
            row = run_row(db, number)
            assert row is not None
            records, trials, bins = (read(db, table, number) for table in TABLES)
            store.add(Run(*row[:7]), records, trials, bins)
            misses = 0
        elif problem == "can't be found":
            misses += 1
        else:
            dropped.append(Damage("run", key, problem))
            misses += 1
    for number in range(1, 1 + (_last(db, "request") or MISSES)):
        text, problem = request_problem(db, number)
        if problem is None:
            store.ask(text)
        elif text:
            dropped.append(Damage("request", str(number), problem))
    return dropped


def _last(db: sqlite3.Connection, table: str) -> int | None:
    """The largest number in a table; `None` where that can't be told."""
    try:
        (last,) = db.execute(f"SELECT max(id) FROM {table}").fetchone()
        (count,) = db.execute(f"SELECT count(*) FROM {table} NOT INDEXED").fetchone()
    except sqlite3.Error:
        return None
    return last or 0 if (last or 0) >= count and (last or 0) < 2**31 else None
