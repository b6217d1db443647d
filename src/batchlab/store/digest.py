"""Checksums of what is stored: SQLite has none of its own, and a flipped bit still looks like data.

A run has one of each of its tables (`rows_digest`) and one of its row, which has those in it
(`digest`). The store's seal is all rows' digests put together in any order (`joined`), so that a
row that has vanished is noticed too.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

SEPARATOR = "\x1f"
NOTHING = "0" * 64  # the seal of no rows


def digest(*fields: str | int | float) -> str:
    """SHA-256 of the fields in their order; floats by their shortest exact text."""
    text = SEPARATOR.join(map(str, fields))
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def rows_digest(row_type: type, rows: Sequence[Sequence[Any]]) -> str:
    """SHA-256 of rows of a NamedTuple's fields, column by column; nan and NULL are one value.

    Raises `ValueError` where a value is not of its field's type.
    """
    known = hashlib.sha256(f"{row_type.__name__} {len(rows)}".encode())
    if rows:
        columns = zip(*rows, strict=True)
        for kind, column in zip(row_type.__annotations__.values(), columns, strict=True):
            known.update(_bytes(kind, column))
    return known.hexdigest()


def joined(digests: Iterable[str], onto: str = NOTHING) -> str:
    """The seal of rows with these digests and of those that `onto` is of; order does not matter."""
    total = int(onto, 16)
    for one in digests:
        total = (total + int(one, 16)) % 2**256  # a sum: of a XOR two like rows would be none
    return f"{total:064x}"


def _bytes(kind: type, column: Sequence[Any]) -> bytes:
    if kind is str:
        if set(map(type, column)) != {str}:
            raise ValueError("not text")
        return SEPARATOR.join(column).encode("utf-8", "surrogateescape")
    if kind is int:
        if set(map(type, column)) != {int}:
            raise ValueError("not whole numbers")
        return np.array(column, np.int64).tobytes()
    if not set(map(type, column)) <= {float, int, type(None)}:
        raise ValueError("not numbers")
    values: npt.NDArray[np.float64] = np.array(column, np.float64)
    values[np.isnan(values)] = np.nan  # one of the many
    values += 0.0  # SQLite keeps no minus of a zero
    return values.tobytes()
