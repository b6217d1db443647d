"""The store's records: one SQLite file, written by one process, open with anything."""

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

import pandas as pd

from batchlab.record import BinRecord, Record, TrialRecord
from batchlab.spec import UserError

FILE = "batchlab.sqlite"
APPLICATION = 0x62_6C_61_62  # "blab", in the file's header: says that a SQLite file is ours
VERSION = 1

_SCHEMA = """
CREATE TABLE run (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, kind TEXT NOT NULL, spec TEXT NOT NULL,
    status TEXT NOT NULL, steps INTEGER NOT NULL, seconds REAL NOT NULL,
    environment TEXT NOT NULL, created TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP
) STRICT;
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
CREATE TABLE request (
    id INTEGER PRIMARY KEY, request TEXT NOT NULL UNIQUE,
    created TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP
) STRICT;
"""


class Run(NamedTuple):
    """A run as it is stored: what was asked for and how it ended."""

    key: str
    kind: str
    spec: str  # canonical JSON
    status: str
    steps: int
    seconds: float
    environment: str  # JSON: versions, threads, device


class Store:
    """Finished runs with their records. One writer; any number of readers.

    Everything of a run is written in one transaction: it is there as a whole or not at all.
    Raises `UserError` where the place is not writable, not a store, damaged, or written by a
    newer version.
    """

    def __init__(self, root: Path, *, create: bool = True) -> None:
        self.root = root
        path = root / FILE
        if not path.exists():
            if not create:
                raise UserError(f"store {root}: no store there (no {FILE}); name one that exists")
            _make_room(root)
        with self._translated():
            self._db = sqlite3.connect(path, isolation_level=None)
            try:
                self._prepare(writable=create)
            except BaseException:
                self._db.close()
                raise

    def _prepare(self, *, writable: bool) -> None:
        (tables,) = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        (application,) = self._db.execute("PRAGMA application_id").fetchone()
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if tables and application != APPLICATION:
            raise UserError(f"store {self.root}: {FILE} is a database of another program")
        if version > VERSION:
            raise UserError(
                f"store {self.root}: written by a newer batchlab (format {version}, this one "
                f"reads up to {VERSION}); upgrade batchlab or name another store"
            )
        if not tables:
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.executescript(
                f"BEGIN; {_SCHEMA} PRAGMA application_id = {APPLICATION}; "
                f"PRAGMA user_version = {VERSION}; COMMIT;"
            )
        if writable:
            self._db.execute("PRAGMA synchronous = FULL")
            with self._transaction():  # fails now, not after hours of training
                self._db.execute("DELETE FROM run WHERE id IS NULL")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    def keys(self) -> set[str]:
        """Keys of all stored runs."""
        return {row[0] for row in self._query("SELECT key FROM run")}

    def runs(self, keys: Sequence[str] | None = None) -> list[Run]:
        """Stored runs, oldest first: all of them, or those of the keys that are there."""
        columns = ", ".join(Run._fields)
        if keys is None:
            return [Run(*row) for row in self._query(f"SELECT {columns} FROM run ORDER BY id")]
        chosen = "SELECT value FROM json_each(?)"
        sql = f"SELECT {columns} FROM run WHERE key IN ({chosen}) ORDER BY id"
        return [Run(*row) for row in self._query(sql, json.dumps(list(keys)))]

    def add(
        self,
        run: Run,
        records: Iterable[Record] = (),
        trials: Iterable[TrialRecord] = (),
        bins: Iterable[BinRecord] = (),
    ) -> None:
        """Write a run and all that was measured on it, whole or not at all."""
        with self._transaction():
            marks = ", ".join("?" * len(run))
            columns = ", ".join(Run._fields)
            cursor = self._db.execute(f"INSERT INTO run ({columns}) VALUES ({marks})", run)
            self._insert("record", cursor.lastrowid, records)
            self._insert("trial", cursor.lastrowid, trials)
            self._insert("bin", cursor.lastrowid, bins)

    def records(self, keys: Sequence[str]) -> pd.DataFrame:
        """Training records of these runs: `key` and the fields of `Record`, in their order."""
        return self._frame("record", Record._fields, keys)

    def trials(self, keys: Sequence[str]) -> pd.DataFrame:
        """Trial records of these runs: `key` and the fields of `TrialRecord`."""
        return self._frame("trial", TrialRecord._fields, keys)

    def bins(self, keys: Sequence[str]) -> pd.DataFrame:
        """Histograms of raw values of these runs: `key` and the fields of `BinRecord`."""
        return self._frame("bin", BinRecord._fields, keys)

    def ask(self, request: str) -> None:
        """Remember what was asked of `reproduce`, so that findings can be told again."""
        with self._transaction():
            self._db.execute("INSERT OR IGNORE INTO request (request) VALUES (?)", (request,))

    def requests(self) -> list[str]:
        """What was asked of `reproduce`, oldest first."""
        return [row[0] for row in self._query("SELECT request FROM request ORDER BY id")]

    def _insert(self, table: str, run: int | None, rows: Iterable[tuple[Any, ...]]) -> None:
        rows = iter(rows)
        first = next(rows, None)
        if first is None:
            return
        sql = f"INSERT INTO {table} VALUES (?{', ?' * len(first)})"
        self._db.execute(sql, (run, *first))
        self._db.executemany(sql, ((run, *row) for row in rows))

    def _frame(self, table: str, fields: Sequence[str], keys: Sequence[str]) -> pd.DataFrame:
        columns = ", ".join(f'{table}."{field}"' for field in fields)
        sql = (
            f"SELECT run.key, {columns} FROM {table} JOIN run ON run.id = {table}.run "
            f"WHERE run.key IN (SELECT value FROM json_each(?)) ORDER BY {table}.rowid"
        )
        rows = self._query(sql, json.dumps(list(keys)))
        frame = pd.DataFrame.from_records(rows, columns=["key", *fields])
        # SQLite keeps a nan as NULL, which comes back as None.
        return frame.astype({"value": float}) if "value" in frame else frame

    def _query(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        with self._translated():
            return self._db.execute(sql, values).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._translated():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """SQLite's errors as one line that says what to do."""
        try:
            yield
        except sqlite3.OperationalError as error:
            raise UserError(
                f"store {self.root}: can't be used ({error}); is it writable?"
            ) from None
        except sqlite3.DatabaseError as error:
            raise UserError(
                f"store {self.root}: {FILE} is damaged or no database ({error}); name another store"
            ) from None


def _make_room(root: Path) -> None:
    """An empty directory for a new store; one that holds something else is not taken over."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        if any(root.iterdir()):
            raise UserError(
                f"store {root}: not a store (not empty, no {FILE} in it); name a store or a new "
                "directory"
            )
    except OSError as error:
        raise UserError(
            f"store {root}: not writable ({error.strerror}); name a directory that is"
        ) from None
