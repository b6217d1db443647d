"""The store's records: one SQLite file, each run in it whole, open with anything."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import pandas as pd

from batchlab.record import BinRecord, Record, TrialRecord
from batchlab.spec import UserError
from batchlab.store.columns import Column, Columns, Words, joined_words
from batchlab.store.connection import Connection
from batchlab.store.digest import digest
from batchlab.store.schema import (
    FIELDS,
    FILE,
    TABLES,
    VERSION,
    extend_seal,
    final,
    ledger_digest,
    read,
    sealed,
)

__all__ = ["FILE", "VERSION", "Last", "Run", "Store"]

Last = dict[str, dict[str, float]]  # by name and layer: the last value of it


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
    """Finished runs with their records, for any number of processes on one machine.

    Everything of a run is written in one transaction: it is there as a whole or not at all. What
    is read is checked against the digests that were written with it. Raises `UserError` where the
    place is not writable, not a store, damaged, or written by a newer version.
    """

    def __init__(self, root: Path, *, create: bool = True) -> None:
        self.root = root
        self.connection = Connection(root, create_it=create)
        self._ledger: tuple[tuple[int, int], dict[str, str]] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        self.connection.db.close()

    def keys(self) -> set[str]:
        """Keys of all stored runs."""
        return set(self.states())

    def states(self) -> Mapping[str, str]:
        """How every stored run ended, by its key; no other column is read."""
        db = self.connection.db
        with self.connection.reading():
            (version,) = db.execute("PRAGMA data_version").fetchone()
            now = (version, db.total_changes)
            if self._ledger is None or self._ledger[0] != now:
                states, *told = sealed(db)
                if [tuple(told)] != db.execute("SELECT * FROM seal").fetchall():
                    raise self.connection.damaged("its runs are not all that were written")
                self._ledger = now, states
            return self._ledger[1]

    def has(self, keys: Sequence[str]) -> set[str]:
        """Those of the keys that are stored."""
        sql = "SELECT key FROM run WHERE key IN (SELECT value FROM json_each(?))"
        return {key for (key,) in self.connection.query(sql, json.dumps(list(keys)))}

    def runs(self, keys: Sequence[str] | None = None) -> list[Run]:
        """Stored runs, oldest first: all of them, or those of the keys that are there."""
        return [Run(*row[2:9]) for row in self._rows(keys)]

    def ended(self, keys: Sequence[str] | None = None) -> Iterator[tuple[Run, Last]]:
        """Stored runs, oldest first, each with its last values."""
        for run, last in self.finals(keys):
            yield run, json.loads(last)

    def finals(self, keys: Sequence[str] | None = None) -> Iterator[tuple[Run, str]]:
        """As `ended`, the last values as JSON."""
        for row in self._rows(keys):
            yield Run(*row[2:9]), row[9]

    def add(
        self,
        run: Run,
        records: Iterable[Record] | Columns = (),
        trials: Iterable[TrialRecord] | Columns = (),
        bins: Iterable[BinRecord] | Columns = (),
    ) -> bool:
        """Write a run and all that was measured on it, whole or not at all.

        False where it is there already: a run's key says what is in it, so it stays as it is.
        """
        with self.connection.transaction():
            return self.write(run, records, trials, bins)

    def write(
        self,
        run: Run,
        records: Iterable[Record] | Columns = (),
        trials: Iterable[TrialRecord] | Columns = (),
        bins: Iterable[BinRecord] | Columns = (),
    ) -> bool:
        """What `add` does, within a transaction of the caller's: for many runs at once."""
        if self.has([run.key]):
            return False
        tables = {
            table: given if isinstance(given, Columns) else Columns.of(of, given)
            for (table, of), given in zip(TABLES.items(), (records, trials, bins), strict=True)
        }
        digests = (of.digest() for of in tables.values())
        row: tuple[Any, ...] = (*run, final(tables["record"]), *digests)
        mark = digest(*row)
        db = self.connection.db
        columns, marks = ", ".join(FIELDS), ", ".join("?" * len(FIELDS))
        sql = f"INSERT INTO run ({columns}, digest) VALUES ({marks}, ?)"
        number = db.execute(sql, (*row, mark)).lastrowid
        for table, of in tables.items():
            sql = f"INSERT INTO {table} VALUES (?{', ?' * len(of.columns)})"
            lists = [column.tolist() for column in of.columns]
            db.executemany(sql, zip(repeat(number), *lists, strict=False))
        extend_seal(db, ledger_digest(run.key, run.status, mark))
        return True

    def records(self, keys: Sequence[str]) -> pd.DataFrame:
        """Training records of these runs: `key` and the fields of `Record`, in their order.

        Here and below a column of text is a categorical.
        """
        return self._frame("record", keys)

    def trials(self, keys: Sequence[str]) -> pd.DataFrame:
        """Trial records of these runs: `key` and the fields of `TrialRecord`."""
        return self._frame("trial", keys)

    def bins(self, keys: Sequence[str]) -> pd.DataFrame:
        """Histograms of raw values of these runs: `key` and the fields of `BinRecord`."""
        return self._frame("bin", keys)

    def ask(self, request: str) -> None:
        """Remember what was asked of `reproduce`, so that findings can be told again."""
        with self.connection.transaction():
            sql = "INSERT OR IGNORE INTO request (request, digest) VALUES (?, ?)"
            if self.connection.db.execute(sql, (request, digest(request))).rowcount:
                extend_seal(self.connection.db, digest(request))

    def requests(self) -> list[str]:
        """What was asked of `reproduce`, oldest first."""
        rows = self.connection.query("SELECT request, digest FROM request ORDER BY id")
        if any(digest(request) != known for request, known in rows):
            raise self.connection.damaged("a request is not what was written")
        return [request for request, _ in rows]

    def _rows(self, keys: Sequence[str] | None) -> list[tuple[Any, ...]]:
        """Number, digest and fields of these runs, all as they were written."""
        states = self.states()
        chosen, values = "", list[object]()
        if keys is not None:
            chosen, values = "WHERE key IN (SELECT value FROM json_each(?))", [json.dumps([*keys])]
        sql = f"SELECT id, digest, {', '.join(FIELDS)} FROM run {chosen} ORDER BY id"
        rows = self.connection.query(sql, *values)
        for row in rows:
            if digest(*row[2:]) != row[1] or row[2] not in states:
                raise self.connection.damaged("a run is not what was written")
        if len(rows) != (len(states) if keys is None else len(states.keys() & set(keys))):
            raise self.connection.damaged("a run can't be found")
        return rows

    def _frame(self, table: str, keys: Sequence[str]) -> pd.DataFrame:
        runs = self._rows(keys)
        found = [self._measured(table, *run) for run in runs]
        of = np.repeat(np.arange(len(runs), dtype=np.int32), [len(part) for part in found])
        columns: dict[str, Column] = {"key": Words(of, [run[2] for run in runs])}
        for at, (field, kind) in enumerate(TABLES[table].__annotations__.items()):
            parts: list[Any] = [part.columns[at] for part in found]
            if kind is str:
                columns[field] = joined_words(parts)
            else:
                columns[field] = np.concatenate([np.empty(0, kind), *parts])
        return pd.DataFrame({name: _series(column) for name, column in columns.items()})

    def _measured(self, table: str, number: int, _: str, *row: Any) -> Columns:
        """A table's rows of one run, all as they were written."""
        run = f"run {row[0][:12]}"
        try:
            with self.connection.translated():
                found = read(self.connection.db, table, number)
        except UserError:
            raise
        except (ValueError, TypeError, OverflowError) as error:
            raise self.connection.damaged(f"{run}: {error}") from None
        if found.digest() != row[FIELDS.index(f"{table}s")]:
            raise self.connection.damaged(f"{run}: its {table}s are not all there")
        return found


def _series(column: Column) -> Any:
    if isinstance(column, Words):
        return pd.Categorical.from_codes(column.codes_N, pd.Index(column.words))
    return column
