"""A store of format 1 is brought up to date with all that is in it."""

import sqlite3
from pathlib import Path

import pytest

from batchlab.spec import UserError
from batchlab.store.check import check
from batchlab.store.database import FILE, VERSION, Store
from batchlab.store.schema import APPLICATION
from tests.store.test_check import KEYS, made

OLD = """
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


def old(root: Path, new: Path) -> Path:
    """What `new` has, as format 1 had it."""
    root.mkdir()
    db = sqlite3.connect(root / FILE, isolation_level=None)
    db.executescript(OLD)
    db.execute("ATTACH ? AS new", (str(new / FILE),))
    columns = "id, key, kind, spec, status, steps, seconds, environment, created"
    db.execute(f"INSERT INTO run ({columns}) SELECT {columns} FROM new.run")
    db.execute("INSERT INTO request SELECT id, request, created FROM new.request")
    for table in ("record", "trial", "bin"):
        db.execute(f"INSERT INTO {table} SELECT * FROM new.{table}")
    db.executescript(f"PRAGMA application_id = {APPLICATION}; PRAGMA user_version = 1")
    db.close()
    return root


@pytest.mark.parametrize("look", [True, False])
def test_all_of_an_old_store(tmp_path: Path, look: bool) -> None:
    new = made(tmp_path / "new")
    root = old(tmp_path / "old", new)
    with Store(root, create=not look) as store, Store(new) as other:
        assert list(store.ended()) == list(other.ended())
        assert store.records(KEYS).equals(other.records(KEYS))
        assert store.trials(KEYS).equals(other.trials(KEYS))
        assert store.bins(KEYS).equals(other.bins(KEYS))
        assert store.requests() == other.requests()
    assert check(root) == []
    db = sqlite3.connect(root / FILE)
    assert db.execute("PRAGMA user_version").fetchone() == (VERSION,)
    db.close()


def test_an_update_that_fails_leaves_the_old_store(tmp_path: Path) -> None:
    root = old(tmp_path / "old", made(tmp_path / "new"))
    db = sqlite3.connect(root / FILE)
    with db:
        db.execute("CREATE TABLE claim (x)")  # stands in the way of the update's last steps
        before = db.execute("SELECT sql FROM sqlite_master").fetchall()
    with pytest.raises(UserError, match="claim"):
        Store(root)
    assert db.execute("SELECT sql FROM sqlite_master").fetchall() == before
    assert db.execute("PRAGMA user_version").fetchone() == (1,)
    db.close()
