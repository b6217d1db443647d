"""Documents on disk: there whole or not at all, as JSON that any reader takes."""

import fcntl
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from batchlab.spec import UserError


def write(path: Path, content: str | bytes) -> None:
    """Write the content beside the path, then put it in its place; `OSError` as it comes."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    data = content.encode() if isinstance(content, str) else content
    try:
        beside.write_bytes(data)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """What can't be written to the directory that a user named, as one line."""
    try:
        yield
    except OSError as error:
        raise UserError(f"--out {out}: can't be written ({error.strerror})") from None


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """One command at a time in a directory; raises `UserError` where there is another.

    The system lets go of the lock however the command ends. A file system without locks has none.
    """
    file = os.open(out, os.O_RDONLY)  # a directory can be locked, so that nothing is left in it
    try:
        with suppress(OSError):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"--out {out}: another command is at work there; wait for its end, or give "
                    f"another --out"
                ) from None
        yield
    finally:
        os.close(file)


def write_json(path: Path, document: object) -> None:
    """The document as strict JSON, a field a line; `OSError` as it comes."""
    write(path, json.dumps(plain(document), indent=1, allow_nan=False) + "\n")


def plain(value: Any) -> Any:
    """The value as strict JSON knows it; data classes and named tuples as objects, NaN as null."""
    if is_dataclass(value) and not isinstance(value, type):
        return {key: plain(inner) for key, inner in asdict(value).items()}
    if hasattr(value, "_asdict"):
        return plain(value._asdict())
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
