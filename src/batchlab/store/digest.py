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
import pandas as pd

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
    return _checked(row_type, rows)[1]


def columns_of(row_type: type, rows: Sequence[Sequence[Any]]) -> tuple[list[npt.NDArray[Any]], str]:
    """The rows' fields as an array each, and the rows' digest; raises as `rows_digest` does."""
    columns, told = _checked(row_type, rows)
    return [_words(c) if isinstance(c, tuple) else c for c in columns], told


def _checked(row_type: type, rows: Sequence[Sequence[Any]]) -> tuple[list[Any], str]:
    """Columns, those of numbers as arrays, and the digest."""
    known = hashlib.sha256(f"{row_type.__name__} {len(rows)}".encode())
    kinds = row_type.__annotations__.values()
    columns: list[Any] = list(zip(*rows, strict=True)) if rows else [() for _ in kinds]
    for at, kind in enumerate(kinds):
        if kind is str:
            if not set(map(type, columns[at])) <= {str}:
                raise ValueError("not text")
            known.update(SEPARATOR.join(columns[at]).encode("utf-8", "surrogateescape"))
        else:
            columns[at] = _numbers(kind, columns[at])
            known.update(columns[at].tobytes())
    return columns, known.hexdigest()


def joined(digests: Iterable[str], onto: str = NOTHING) -> str:
    """The seal of rows with these digests and of those that `onto` is of; order does not matter."""
    total = int(onto, 16)
    for one in digests:
        total = (total + int(one, 16)) % 2**256  # a sum: of a XOR two like rows would be none
    return f"{total:064x}"


def _words(column: Sequence[str]) -> npt.NDArray[Any]:
    """An array of them in which equal words are one object: there are millions, of few words."""
    codes, words = pd.factorize(np.array(column, object))
    told: npt.NDArray[Any] = words[codes]
    return told


def _numbers(kind: type, column: Sequence[Any]) -> npt.NDArray[Any]:
    if kind is int:
        if not set(map(type, column)) <= {int}:
            raise ValueError("not whole numbers")
        return np.array(column, np.int64)
    if not set(map(type, column)) <= {float, int, type(None)}:
        raise ValueError("not numbers")
    values: npt.NDArray[np.float64] = np.array(column, np.float64)
    values[np.isnan(values)] = np.nan  # one of the many
    values += 0.0  # SQLite keeps no minus of a zero
    return values
