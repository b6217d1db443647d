"""The store: whole or not at all, and one clear line where it can't be used."""

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from batchlab.record import BinRecord, Record, TrialRecord
from batchlab.spec import UserError
from batchlab.store.database import FILE, VERSION, Run, Store

KEYS = [c * 64 for c in "abc"]


def run(key: str) -> Run:
    return Run(key, "train", "{}", "finished", 3, 0.5, json.dumps({"torch": "x"}))


RECORDS = [Record(0, 0.0, 0, "train_loss", "all", 2.3), Record(3, 1.0, 50, "norm", "weights", 1e-9)]


def test_what_goes_in_comes_out(tmp_path: Path) -> None:
    trials = [TrialRecord(4, 0, 1, "sum-last", "4.weight", "norm", 0.1)]
    bins = [BinRecord(4, "sum-last", "4.weight", -0.2, -0.1, 7)]
    with Store(tmp_path / "new") as store:
        store.add(run(KEYS[0]), RECORDS, trials, bins)
        store.add(run(KEYS[1]))
    with Store(tmp_path / "new", create=False) as store:
        assert store.keys() == set(KEYS[:2])
        assert store.runs() == [run(KEYS[0]), run(KEYS[1])]
        assert store.runs([KEYS[1], KEYS[2]]) == [run(KEYS[1])]
        assert [Record(*row[1:]) for row in store.records(KEYS).itertuples(index=False)] == RECORDS
        assert list(store.trials(KEYS).iloc[0]) == [KEYS[0], *trials[0]]
        assert list(store.bins(KEYS).iloc[0]) == [KEYS[0], *bins[0]]
        assert store.records([KEYS[1]]).empty


def test_a_run_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    def failing() -> Iterator[Record]:
        yield RECORDS[0]
        raise RuntimeError("in the middle")

    with Store(tmp_path) as store:
        with pytest.raises(RuntimeError, match="in the middle"):
            store.add(run(KEYS[0]), failing())
        assert store.keys() == set()
        assert store.records(KEYS).empty
        assert store.add(run(KEYS[0]), RECORDS)
        assert not store.add(run(KEYS[0]), RECORDS)
        assert len(store.records(KEYS)) == 2


def test_requests_are_remembered_once(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        for text in ("a", "b", "a"):
            store.ask(text)
        assert store.requests() == ["a", "b"]


def test_no_store_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no store there"):
        Store(tmp_path / "none", create=False)
    assert not (tmp_path / "none").exists()


def test_a_directory_with_something_else_is_not_taken_over(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="not a store"):
        Store(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_not_writable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="not writable"):
        Store(tmp_path / "file" / "store")


def test_a_newer_version(tmp_path: Path) -> None:
    Store(tmp_path).close()
    db = sqlite3.connect(tmp_path / FILE)
    db.execute(f"PRAGMA user_version = {VERSION + 1}")
    db.close()
    with pytest.raises(UserError, match="newer batchlab"):
        Store(tmp_path)


def test_another_programs_database(tmp_path: Path) -> None:
    db = sqlite3.connect(tmp_path / FILE)
    db.execute("CREATE TABLE letters (x)")
    db.close()
    with pytest.raises(UserError, match="another program"):
        Store(tmp_path)


@pytest.mark.parametrize("damage", ["text", "truncated", "middle"])
def test_a_damaged_database(tmp_path: Path, damage: str) -> None:
    with Store(tmp_path) as store:
        for key in KEYS:
            store.add(run(key), RECORDS * 200)
    path = tmp_path / FILE
    content = path.read_bytes()
    if damage == "text":
        path.write_text("not a database, but a text that is long enough to be looked at" * 10)
    elif damage == "truncated":
        path.write_bytes(content[: len(content) // 3])
    else:
        path.write_bytes(content[:4096] + b"\xff" * 8192 + content[12288:])

    def look() -> None:
        with Store(tmp_path) as store:
            store.runs()
            store.records(KEYS)

    with pytest.raises(UserError) as raised:
        look()
    assert str(tmp_path) in str(raised.value)
    assert "\n" not in str(raised.value)
