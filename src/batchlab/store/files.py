"""Files of a store: written whole or not at all, and never outside of it."""

import os
import re
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from batchlab.spec import UserError

TEMPORARY = ".tmp"
STALE_S = 3600.0  # no file takes so long to write: its writer is gone
_TEMPORARY_NAME = re.compile(r"(?:[0-9a-f]{64}\.safetensors\.)?[0-9a-f]{32}\.tmp")


class UnreachableError(UserError):
    """Files can't be read or written now; what is there may be whole."""


class Files(Protocol):
    """A flat directory of files, on this machine or elsewhere, each there whole or not at all.

    What can't be read or written is an `OSError`, or an `UnreachableError` that names it.
    """

    older: bool  # whether version 1, which wrote no digests, may have written some of them
    option: str  # what a command is given to look here; nothing where it does so anyway

    def where(self, name: str) -> str:
        """What a user would call it."""

    def write(self, name: str, content: bytes) -> None:
        """Put it there in one step, durably, in place of an earlier one."""

    def read(self, name: str) -> AbstractContextManager[Path]:
        """A file on this machine that has the content, while the context lasts.

        Raises `FileNotFoundError` where there is none, and `ValueError` where it is a link.
        """

    def heads(self, suffix: str) -> Iterator[tuple[str, Path]]:
        """The names of files called so, each with a file on this machine to read its texts from.

        It has the file's length and its safetensors header; what follows may be zeros.
        """

    def names(self) -> list[str]:
        """Of all files, sorted."""

    def stamp(self, name: str) -> int | str | None:
        """Something that changes when the file is written again; `None` where there is none."""

    def stamps(self) -> dict[str, int | str | None]:
        """Of all files, by name."""

    def drop(self, name: str) -> None:
        """Delete it, if it is there."""

    def take(self, name: str, target: Path) -> None:
        """Move it to a path on this machine."""

    def sweep(self) -> None:
        """Delete what killed writers left half written."""


def temporary_name(name: str = "") -> str:
    """A name of its own for a file that is being written."""
    return f"{name and name + '.'}{uuid.uuid4().hex}{TEMPORARY}"


def is_temporary_name(name: str) -> bool:
    """Whether `temporary_name` may have given it to a checkpoint."""
    return _TEMPORARY_NAME.fullmatch(name) is not None


def write_durably(path: Path, content: bytes) -> None:
    """Put the content at `path` in one step that survives a crash; `OSError` as it comes."""
    beside = path.with_name(temporary_name(path.name))
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
