"""Rows that are kept one by one, and files that were cut off or altered."""

import json
from pathlib import Path

import pytest

from batchlab.spec import UserError
from batchlab.sweep.journal import Journal, read, write_once


def test_rows_come_back(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    assert read(path) == []
    Journal(path).add({"a": 1})
    Journal(path).add({"a": 2.5})
    assert Journal(path).rows == read(path) == [{"a": 1}, {"a": 2.5}]


def test_a_row_cut_off_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"a": 2')
    assert read(path) == [{"a": 1}]
    assert path.read_text().endswith("2")  # to read changes nothing
    journal = Journal(path)
    journal.add({"a": 3})
    assert path.read_text() == '{"a": 1}\n{"a": 3}\n'


@pytest.mark.parametrize("line", ["{", "[1]", "\xff"])
def test_an_altered_file_is_told(tmp_path: Path, line: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line.encode("latin1") + b"\n")
    with pytest.raises(UserError, match=r"rows.jsonl: line 2 is no JSON object"):
        Journal(path)


def test_what_is_not_json_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with pytest.raises(ValueError, match="JSON"):
        Journal(path).add({"a": float("nan")})
    assert not path.exists()
    with pytest.raises(ValueError, match="JSON"):
        write_once(tmp_path / "head.json", float("inf"))
    assert list(tmp_path.iterdir()) == []
    write_once(tmp_path / "head.json", {"a": 1})
    assert json.loads((tmp_path / "head.json").read_text()) == {"a": 1}
