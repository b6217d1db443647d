"""Rows of a NamedTuple, a column a field: they are measured, handed on and read by the million.

Shapes: N rows.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from batchlab.store.digest import SEPARATOR


class Words(NamedTuple):
    """A column of text, which has few different values: where each row's stands among them."""

    codes_N: NDArray[np.int32]
    words: list[str]  # in the order in which they first occur

    @classmethod
    def of(cls, column: Sequence[str]) -> Self:
        """From the text itself; raises `ValueError` where it is none."""
        places: defaultdict[str, int] = defaultdict()
        places.default_factory = places.__len__  # a new word stands where the known ones end
        codes_N = np.fromiter(map(places.__getitem__, column), np.int32, len(column))
        if not all(type(word) is str for word in places):
            raise ValueError("not text")
        return cls(codes_N, list(places))

    def tolist(self) -> list[str]:
        """The text itself; equal words are one object."""
        told: list[str] = np.array(self.words, object)[self.codes_N].tolist()
        return told


Column = NDArray[np.int64] | NDArray[np.float64] | Words


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """The fields of N rows, in the fields' order."""

    row_type: type
    columns: tuple[Column, ...]

    @classmethod
    def of(cls, row_type: type, rows: Iterable[Sequence[Any]]) -> Self:
        """From the rows; raises `ValueError` where a value is not of its field's type."""
        rows = list(rows)
        # Transposing by `zip` goes through all rows at once, and is three times as slow.
        fields = enumerate(row_type.__annotations__.values())
        return cls(row_type, tuple(_column(kind, [row[at] for row in rows]) for at, kind in fields))

    @classmethod
    def read(cls, row_type: type, rows: Iterable[tuple[Any, ...]]) -> Self:
        """As `of`, of rows whose numbers a database has checked: they never are objects here.

        Raises `ValueError`, `TypeError` or `OverflowError` where one is no number all the same.
        """
        dtypes = {int: np.int64, float: np.float64, str: np.object_}
        told = [(name, dtypes[kind]) for name, kind in row_type.__annotations__.items()]
        table = np.fromiter(rows, np.dtype(told))
        return cls(
            row_type,
            tuple(
                Words.of(table[name].tolist()) if kind is str else _plain(table[name].copy())
                for name, kind in row_type.__annotations__.items()
            ),
        )

    def __len__(self) -> int:
        first = self.columns[0]
        return len(first.codes_N if isinstance(first, Words) else first)

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        """The rows."""
        return zip(*(column.tolist() for column in self.columns), strict=True)

    def digest(self) -> str:
        """SHA-256, column by column; nan and NULL are one value."""
        known = hashlib.sha256(f"{self.row_type.__name__} {len(self)}".encode())
        for column in self.columns:
            if isinstance(column, Words):
                text = SEPARATOR.join(column.tolist())
                known.update(text.encode("utf-8", "surrogateescape"))
            else:
                known.update(column.tobytes())
        return known.hexdigest()


def joined_words(parts: Sequence[Words]) -> Words:
    """One column after the other."""
    places: dict[str, int] = {}
    codes = []
    for codes_N, words in parts:
        moved = [places.setdefault(word, len(places)) for word in words]
        codes.append(np.array(moved, np.int32)[codes_N])
    return Words(np.concatenate(codes) if codes else np.empty(0, np.int32), list(places))


def _column(kind: type, column: list[Any]) -> Column:
    if kind is str:
        return Words.of(column)
    if kind is int:
        if not set(map(type, column)) <= {int}:
            raise ValueError("not whole numbers")
        return np.array(column, np.int64)
    if not set(map(type, column)) <= {float, int, type(None)}:
        raise ValueError("not numbers")
    return _plain(np.array(column, np.float64))


def _plain(values_N: NDArray[Any]) -> NDArray[Any]:
    """In place: of the many nans one, and no minus of a zero, which SQLite keeps neither."""
    if values_N.dtype == np.float64:
        values_N[np.isnan(values_N)] = np.nan
        values_N += 0.0
    return values_N
