"""Rows as columns: the same rows, the same digest as ever, and errors where the types are wrong."""

import pickle
import sqlite3
from contextlib import closing
from math import isnan, nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batchlab.record import BinRecord, Record, TrialRecord
from batchlab.store.columns import Columns, Words, joined_words
from batchlab.store.database import Run, Store
from batchlab.store.schema import FILE, read

TRIALS = [
    TrialRecord(4, 0, 1, "sum-last", "4.weight", "norm", 0.1),
    TrialRecord(4, 1, 0, "sum-last", "4.weight", "cosine", nan),
    TrialRecord(16, 1, 0, "mean-last", "4.weight", "norm", -0.0),
]
RECORDS = [Record(0, 0.0, 0, "train_loss", "all", 2.3), Record(3, 1.0, 50, "norm", "weights", 1e-9)]
RUN = Run("a" * 64, "trials", "{}", "finished", 3, 0.5, "{}")


def test_the_rows_are_in_them() -> None:
    columns = Columns.of(TrialRecord, iter(TRIALS))
    assert len(columns) == 3
    first, second, third = columns
    assert (first, third) == (TRIALS[0], TRIALS[2])
    assert second[:-1] == TRIALS[1][:-1]
    assert isnan(second[-1])
    assert len(Columns.of(BinRecord, ())) == 0
    assert list(Columns.of(BinRecord, ())) == []


@pytest.mark.parametrize(
    ("row_type", "rows", "known"),
    [
        (TrialRecord, TRIALS, "dc696cc5503593124a22e06b17faff1edd91a43bb7d3d6d4848bcd1707c4fc68"),
        (TrialRecord, [], "a023656b2dde8ba62b9f7ae05c1554f7ff322c702beeb5851d807de73c87b1cc"),
        (Record, RECORDS, "0e934ce8c177fc283743d9d4b285d934e25e7d90f82b2b364713d23d172367bf"),
        (
            BinRecord,
            [BinRecord(4, "sum-last", "é", -0.2, -0.1, 7)],
            "604c16aec450bcc3a8b0a458e0ad5eeef477a5522f3787484a80a31890d9c888",
        ),
    ],
)
def test_digests_are_those_that_stores_have(row_type: type, rows: list[Any], known: str) -> None:
    assert Columns.of(row_type, rows).digest() == known


def test_nan_and_null_are_one_value_and_zero_has_no_sign() -> None:
    def digest(value: float | None) -> str:
        return Columns.of(Record, [(0, 0.0, 0, "norm", "all", value)]).digest()

    assert digest(nan) == digest(None) == digest(-nan)
    assert digest(0.0) == digest(-0.0) != digest(nan)


@pytest.mark.parametrize(
    "row",
    [
        (0.5, 0.0, 0, "norm", "all", 1.0),
        (True, 0.0, 0, "norm", "all", 1.0),
        (0, "0.0", 0, "norm", "all", 1.0),
        (0, 0.0, 0, None, "all", 1.0),
        (0, 0.0, 0, "norm", b"all", 1.0),
    ],
)
def test_a_value_of_another_type(row: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match=r"^not (text|numbers|whole numbers)$"):
        Columns.of(Record, [row])


def test_they_go_to_another_process_small() -> None:
    rows = [TrialRecord(4, k, 0, "".join(["sum", "-last"]), "w", "norm", k / 3) for k in range(999)]
    columns = Columns.of(TrialRecord, rows)
    sent = pickle.dumps(columns)
    assert len(sent) < 50 * len(rows)  # eight bytes a number, four a word
    assert list(pickle.loads(sent)) == rows


def test_text_of_several_runs() -> None:
    parts = [Words.of(["a", "b", "a"]), Words.of([]), Words.of(["c", "b"])]
    joined = joined_words(parts)
    assert joined.words == ["a", "b", "c"]
    assert joined.tolist() == ["a", "b", "a", "c", "b"]
    assert joined_words([]).tolist() == []


def test_what_is_read_is_what_was_written_by_rows_or_columns(tmp_path: Path) -> None:
    with Store(tmp_path / "rows") as store:
        store.add(RUN, RECORDS, TRIALS)
        rows = store.trials([RUN.key])
    with Store(tmp_path / "columns") as store:
        store.add(RUN, Columns.of(Record, RECORDS), Columns.of(TrialRecord, TRIALS))
        assert store.trials([RUN.key]).equals(rows)
        assert store.runs() == [RUN]
    with closing(sqlite3.connect(tmp_path / "columns" / FILE)) as db:
        assert db.execute("SELECT value FROM trial").fetchall() == [(0.1,), (None,), (0.0,)]
        assert read(db, "trial", 1).digest() == Columns.of(TrialRecord, TRIALS).digest()
    assert rows["value"].tolist()[::2] == [0.1, 0.0]
    assert np.isnan(rows["value"][1])
    assert list(rows["name"]) == ["norm", "cosine", "norm"]
