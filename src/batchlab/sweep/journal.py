"""What was measured, a JSON line each, kept as it comes."""

import json
import os
from pathlib import Path
from typing import Any

from batchlab.documents import write
from batchlab.spec import UserError

Row = dict[str, Any]


class Journal:
    """A file of rows that are added one by one; a second journal of the file goes on from there.

    A row is on the disk when `add` returns. One that was cut off (the machine went down) is
    dropped when the file is opened. One process writes a file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = read(path)
        if path.exists():
            whole = path.read_bytes().rfind(b"\n") + 1
            if whole < path.stat().st_size:
                os.truncate(path, whole)

    def add(self, row: Row) -> None:
        """Append a row. Raises `ValueError` where it is not strict JSON."""
        line = json.dumps(row, allow_nan=False) + "\n"
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self.rows.append(row)


def read(path: Path) -> list[Row]:
    """All whole rows, none where there is no file. Raises `UserError` for a line that is no row."""
    if not path.exists():
        return []
    *whole, _ = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(whole, 1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise UserError(f"{path}: line {number} is no JSON object; the file was altered")
        rows.append(row)
    return rows


def write_once(path: Path, document: object) -> None:
    """A JSON document, whole or not at all; `ValueError` where it is not strict JSON."""
    write(path, json.dumps(document, allow_nan=False, indent=1) + "\n")
