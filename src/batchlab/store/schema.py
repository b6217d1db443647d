"""The tables of a store's SQLite file: made whole or not at all, and older ones brought up to date.

Version 1 had no digests, no last values, no claims.
"""

import json
import os
import sqlite3
import uuid
from collections.abc import Iterable, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from batchlab.record import BinRecord, Record, TrialRecord
from batchlab.store.columns import Columns
from batchlab.store.digest import NOTHING, digest, joined
from batchlab.store.files import sync_directory

FILE = "batchlab.sqlite"
APPLICATION = 0x62_6C_61_62  # "blab", in the file's header: says that a SQLite file is ours
VERSION = 2
TABLES: dict[str, type[tuple[Any, ...]]] = {
    "record": Record,
    "trial": TrialRecord,
    "bin": BinRecord,
}
# What a run's digest is of, in this order.
FIELDS = (
    *("key", "kind", "spec", "status", "steps", "seconds", "environment"),
    *("final", "records", "trials", "bins"),
)

_MEASURED = """
CREATE TABLE record (
    run INTEGER NOT NULL REFERENCES run(id), step INTEGER NOT NULL, epoch REAL NOT NULL,
    samples INTEGER NOT NULL, name TEXT NOT NULL, layer TEXT NOT NULL, value REAL
) STRICT;
CREATE INDEX record_run ON record(run);
CREATE TABLE trial (
    run INTEGER NOT NULL REFERENCES run(id), batch_size INTEGER NOT NULL, draw INTEGER NOT NULL,
    "order" INTEGER NOT NULL, convention TEXT NOT NULL, layer TEXT NOT NULL, name TEXT NOT NULL,
    value REAL
) STRICT;
CREATE INDEX trial_run ON trial(run);
CREATE TABLE bin (
    run INTEGER NOT NULL REFERENCES run(id), batch_size INTEGER NOT NULL,
    convention TEXT NOT NULL, layer TEXT NOT NULL, low REAL NOT NULL, high REAL NOT NULL,
    frequency INTEGER NOT NULL
) STRICT;
CREATE INDEX bin_run ON bin(run);
"""
_ALL = f"""
CREATE TABLE run (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, kind TEXT NOT NULL, spec TEXT NOT NULL,
    status TEXT NOT NULL, steps INTEGER NOT NULL, seconds REAL NOT NULL,
    environment TEXT NOT NULL, created TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP,
    final TEXT NOT NULL, records TEXT NOT NULL, trials TEXT NOT NULL, bins TEXT NOT NULL,
    digest TEXT NOT NULL
) STRICT;
{_MEASURED}
CREATE TABLE request (
    id INTEGER PRIMARY KEY, request TEXT NOT NULL UNIQUE,
    created TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP, digest TEXT NOT NULL
) STRICT;
"""
_REST = """
CREATE INDEX run_ledger ON run(key, status, digest);
CREATE TABLE seal (rows INTEGER NOT NULL, digest TEXT NOT NULL) STRICT;
CREATE TABLE claim (
    name TEXT PRIMARY KEY, owner TEXT NOT NULL, host TEXT NOT NULL, work TEXT NOT NULL
) STRICT;
"""


def create(path: Path) -> None:
    """A new, empty database at `path`, unless one is there: it is never seen half made."""
    beside = path.with_name(f"{path.name}.{uuid.uuid4().hex}.new")
    try:
        db = sqlite3.connect(beside, isolation_level=None)
        try:
            db.executescript(
                f"BEGIN; {_ALL} {_REST} INSERT INTO seal VALUES (0, '{NOTHING}'); "
                f"PRAGMA application_id = {APPLICATION}; "
                f"PRAGMA user_version = {VERSION}; COMMIT;"
            )
            db.execute("PRAGMA journal_mode = WAL")
        finally:
            db.close()
        try:
            os.link(beside, path)  # unlike a rename, refused where another process was faster
        except FileExistsError:
            return
        sync_directory(path.parent)
    finally:
        beside.unlink(missing_ok=True)


def migrate(db: sqlite3.Connection, version: int) -> None:
    """Bring an older database up to date, within a transaction of the caller's."""
    if version != 1:  # another process was faster
        return
    for column in ("final", "records", "trials", "bins", "digest"):
        db.execute(f"ALTER TABLE run ADD COLUMN {column} TEXT NOT NULL DEFAULT ''")
    db.execute("ALTER TABLE request ADD COLUMN digest TEXT NOT NULL DEFAULT ''")
    for (number,) in db.execute("SELECT id FROM run").fetchall():
        _describe(db, number)
    for number, text in db.execute("SELECT id, request FROM request").fetchall():
        db.execute("UPDATE request SET digest = ? WHERE id = ?", (digest(text), number))
    for statement in filter(str.strip, _REST.split(";")):
        db.execute(statement)
    _, count, seal = sealed(db)
    db.execute("INSERT INTO seal VALUES (?, ?)", (count, seal))
    db.execute(f"PRAGMA user_version = {VERSION}")


def _describe(db: sqlite3.Connection, number: int) -> None:
    """Last values and digests of a run that has none yet."""
    measured = [read(db, table, number) for table in TABLES]
    told = (final(measured[0]), *(of.digest() for of in measured))
    columns = ", ".join(FIELDS[:7])
    row = db.execute(f"SELECT {columns} FROM run WHERE id = ?", (number,)).fetchone()
    db.execute(
        "UPDATE run SET final = ?, records = ?, trials = ?, bins = ?, digest = ? WHERE id = ?",
        (*told, digest(*row, *told), number),
    )


def read(db: sqlite3.Connection, table: str, run: int) -> Columns:
    """What was measured on a run, as it was written; raises as `Columns.read` does."""
    kinds = TABLES[table].__annotations__
    told = [f"ifnull(\"{f}\", 'nan')" if kind is float else f'"{f}"' for f, kind in kinds.items()]
    sql = f"SELECT {', '.join(told)} FROM {table} WHERE run = ? ORDER BY rowid"
    return Columns.read(TABLES[table], db.execute(sql, (run,)))


def final(records: Iterable[Sequence[Any]]) -> str:
    """The last value of each quantity of each layer, as JSON: `{name: {layer: value}}`.

    None where it is not finite: an earlier one is not how the run ended.
    """
    last: dict[str, dict[str, float]] = {}
    for *_, name, layer, value in records:
        if value is not None and isfinite(value):
            last.setdefault(name, {})[layer] = value
        elif name in last:
            last[name].pop(layer, None)
    return json.dumps(last)


def ledger_digest(key: str, status: str, row: str) -> str:
    """What a run adds to the seal: all that an index alone can tell of it."""
    return digest(key, status, row)


def sealed(db: sqlite3.Connection) -> tuple[dict[str, str], int, str]:
    """Of the rows that are there: the runs' states by key, how many, and what their seal must be.

    Raises `sqlite3.DatabaseError` where the file can't be read.
    """
    rows = db.execute("SELECT key, status, digest FROM run INDEXED BY run_ledger").fetchall()
    requests = db.execute("SELECT digest FROM request").fetchall()
    digests = [ledger_digest(*row) for row in rows] + [one for (one,) in requests]
    return {key: status for key, status, _ in rows}, len(digests), joined(digests)


def extend_seal(db: sqlite3.Connection, one: str) -> None:
    """Add one row to the seal, within the transaction that writes the row."""
    count, seal = db.execute("SELECT rows, digest FROM seal").fetchone()
    db.execute("UPDATE seal SET rows = ?, digest = ?", (count + 1, joined([one], seal)))
