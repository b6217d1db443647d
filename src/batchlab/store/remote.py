"""Files at an address that fsspec knows: in an object store, or on another machine's disk."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from batchlab.spec import UserError
from batchlab.store.file_system import file_system, puts_whole, said
from batchlab.store.files import STALE_S, UnreachableError, is_temporary_name, temporary_name

# What tells one version of a file from the next, the surest first, as the file systems call it.
MARKS = ("ETag", "etag", "generation", "mtime", "last_modified", "updated", "created", "size")
HEAD_BYTES = 1 << 18  # read of each file at first: most headers are shorter
LONGEST_HEAD = 10**8 + 8  # bytes; safetensors refuses longer headers
AT_ONCE = 32  # headers asked for together


class RemoteFiles:
    """The files of the directory `name` at an address, through fsspec; nothing of it is cached.

    What a file system retries is its own affair (s3fs: five times); after that its error is an
    `UnreachableError`.
    """

    older = False

    def __init__(self, address: str, name: str) -> None:
        self._address, self.option = f"{address}/{name}", f" --checkpoints {address}"
        self._system, self._root = file_system(address, name)
        self._atomic = puts_whole(self._system)

    def where(self, name: str) -> str:
        """Its address."""
        return f"{self._address}/{name}"

    def write(self, name: str, content: bytes) -> None:
        """One put; on another machine's disk, a file beside it that is then renamed."""
        path = self._path(name)
        with self._told("written", name):
            if self._atomic:
                self._system.pipe_file(path, content)
                return
            self._system.makedirs(self._root, exist_ok=True)
            beside = self._path(temporary_name(name))
            try:
                self._system.pipe_file(beside, content)
                self._system.mv(beside, path)
            except BaseException:
                with suppress(Exception):
                    self._system.rm_file(beside)
                raise

    @contextmanager
    def read(self, name: str) -> Iterator[Path]:
        """A copy that is gone afterwards; one that there is no room for is not begun."""
        with self._scratch() as copy:
            with self._told("read", name, FileNotFoundError):
                self._system.invalidate_cache()
                size = self._system.info(self._path(name))["size"] or 0
                if size > (free := shutil.disk_usage(copy.parent).free):
                    raise OSError(f"{size:,} bytes, and {free:,} are free in {copy.parents[1]}")
                self._system.get_file(self._path(name), str(copy))
            yield copy

    def heads(self, suffix: str) -> Iterator[tuple[str, Path]]:
        """Sparse copies, each gone when the next is asked for."""
        entries = self._entries()
        sizes = {name: entries[name]["size"] or 0 for name in entries if name.endswith(suffix)}
        names = sorted(name for name, size in sizes.items() if size)
        with self._scratch() as copy:
            for first in range(0, len(names), AT_ONCE):
                some = {name: sizes[name] for name in names[first : first + AT_ONCE]}
                for name, content in self._beginnings(some).items():
                    with self._told("read", name), copy.open("xb") as file:
                        file.write(content)
                        file.truncate(sizes[name])
                    yield name, copy
                    copy.unlink()

    def names(self) -> list[str]:
        """Of all files, sorted."""
        return sorted(self._entries())

    def stamp(self, name: str) -> int | str | None:
        """As `stamps` has it: file systems tell of one file in other words than of many."""
        return self.stamps().get(name)

    def stamps(self) -> dict[str, int | str | None]:
        """What the file system says of their versions."""
        return {name: _mark(entry) for name, entry in self._entries().items()}

    def drop(self, name: str) -> None:
        """Delete it, if it is there."""
        with suppress(FileNotFoundError), self._told("deleted", name, FileNotFoundError):
            self._system.rm_file(self._path(name))

    def take(self, name: str, target: Path) -> None:
        """Copy it, then delete it."""
        with self.read(name) as copy:
            shutil.copyfile(copy, target)
        self.drop(name)

    def sweep(self) -> None:
        """Delete what killed writers left, where the file system tells how old it is."""
        stale = datetime.now(UTC) - timedelta(seconds=STALE_S)
        for name in filter(is_temporary_name, self.names()):
            with suppress(FileNotFoundError, NotImplementedError):
                if self._modified(name) < stale:
                    self.drop(name)

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        """Where a copy may be put, whose name may be none on this machine."""
        with ExitStack() as stack:
            with self._told("copied"):
                made = tempfile.TemporaryDirectory(prefix="batchlab-")
            yield Path(stack.enter_context(made)) / "copy"

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _entries(self) -> dict[str, dict[str, Any]]:
        """What the file system says of each file, by name; other directories left out."""
        with self._told("listed"):
            self._system.invalidate_cache()
            try:
                found = self._system.ls(self._root, detail=True)
            except FileNotFoundError:
                self._look_for_bucket()
                return {}
        named = {entry["name"].rpartition("/")[2]: entry for entry in found}
        return {name: entry for name, entry in named.items() if name and entry["type"] == "file"}

    def _look_for_bucket(self) -> None:
        """An empty directory of an object store is none; neither is one without a bucket."""
        bucket = self._root.partition("/")[0]
        if self._atomic and bucket:
            try:
                self._system.info(bucket)
            except PermissionError:  # it is there, and may be used but not looked at
                return
            except FileNotFoundError:
                raise FileNotFoundError(f"there is no bucket {bucket}") from None

    def _beginnings(self, sizes: dict[str, int]) -> dict[str, bytes]:
        """The headers, and whatever follows, of files of these sizes that are still there."""
        found = self._ranges({name: min(size, HEAD_BYTES) for name, size in sizes.items()})
        longer = {}
        for name, content in found.items():
            end = 8 + int.from_bytes(content[:8], "little")
            if len(content) < end <= min(sizes[name], LONGEST_HEAD):
                longer[name] = end
        return found | (self._ranges(longer) if longer else {})

    def _ranges(self, ends: dict[str, int]) -> dict[str, bytes]:
        """So many first bytes of each, all asked for together."""
        with self._told("read"):
            paths, starts = [self._path(name) for name in ends], [0] * len(ends)
            found = self._system.cat_ranges(paths, starts, list(ends.values()), on_error="return")
            contents = {}
            for name, content in zip(ends, found, strict=True):
                if isinstance(content, FileNotFoundError):  # dropped meanwhile
                    continue
                if isinstance(content, Exception):
                    raise content
                contents[name] = content
        return contents

    def _modified(self, name: str) -> datetime:
        with self._told("read", name, FileNotFoundError, NotImplementedError):
            when: datetime = self._system.modified(self._path(name))
        return when if when.tzinfo else when.replace(tzinfo=UTC)

    @contextmanager
    def _told(self, done: str, name: str = "", *passing: type[Exception]) -> Iterator[None]:
        """Whatever a file system raises, each its own kinds, as one line."""
        untouched: tuple[type[Exception], ...] = (UserError, *passing)
        try:
            yield
        except untouched:
            raise
        except Exception as error:
            where = self.where(name) if name else self._address
            raise UnreachableError(f"checkpoint {where}: can't be {done} ({said(error)})") from None


def _mark(entry: dict[str, Any]) -> str:
    return next((f"{mark} {entry[mark]}" for mark in MARKS if mark in entry), "")
