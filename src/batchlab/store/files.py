"""Files of a store: written whole or not at all, and never outside of it."""

import os
import time
import uuid
from pathlib import Path

from batchlab.spec import UserError

TEMPORARY = ".tmp"
STALE_S = 3600.0  # no file takes so long to write: its writer is gone


def write_durably(path: Path, content: bytes) -> None:
    """Put the content at `path` in one step that survives a crash; `OSError` as it comes."""
    beside = path.with_name(f"{path.name}.{uuid.uuid4().hex}{TEMPORARY}")
    try:
        with beside.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable: a file's own fsync does not."""
    directory = os.open(path, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def within(root: Path, name: str) -> Path:
    """A directory of the store; `UserError` where it is a link that leads somewhere else."""
    path = root / name
    if path.is_symlink():
        raise UserError(
            f"store {root}: {name} is a link out of the store; put a directory in its place"
        )
    return path


def sweep(directory: Path) -> None:
    """Delete what killed writers left half written."""
    for path in directory.glob(f"*{TEMPORARY}"):
        if path.stat().st_mtime < time.time() - STALE_S:
            path.unlink(missing_ok=True)
