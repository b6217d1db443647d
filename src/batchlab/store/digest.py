"""Checksums of what is stored: SQLite has none of its own, and a flipped bit still looks like data.

A run has one of each of its tables (`Columns.digest`) and one of its row, which has those in it
(`digest`). The store's seal is all rows' digests put together in any order (`joined`), so that a
row that has vanished is noticed too.
"""

import hashlib
from collections.abc import Iterable

SEPARATOR = "\x1f"
NOTHING = "0" * 64  # the seal of no rows


def digest(*fields: str | int | float) -> str:
    """SHA-256 of the fields in their order; floats by their shortest exact text."""
    text = SEPARATOR.join(map(str, fields))
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def joined(digests: Iterable[str], onto: str = NOTHING) -> str:
    """The seal of rows with these digests and of those that `onto` is of; order does not matter."""
    total = int(onto, 16)
    for one in digests:
        total = (total + int(one, 16)) % 2**256  # a sum: of a XOR two like rows would be none
    return f"{total:064x}"
