"""A directory of this machine, as files of a store."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from batchlab.store.files import STALE_S, TEMPORARY, write_durably


class LocalFiles:
    """The files of a directory, made when the first is written; they are read where they are."""

    older = True

    def __init__(self, root: Path, option: str = "") -> None:
        self._root, self.option = root, option

    def where(self, name: str) -> str:
        """Its path."""
        return str(self._root / name)

    def write(self, name: str, content: bytes) -> None:
        """The file and its name are on the disk when this returns; `OSError` as it comes."""
        self._root.mkdir(parents=True, exist_ok=True)
        write_durably(self._root / name, content)

    @contextmanager
    def read(self, name: str) -> Iterator[Path]:
        """The file itself."""
        path = self._root / name
        if path.is_symlink():
            raise ValueError("a link out of the store")
        if not path.exists():
            raise FileNotFoundError(path)
        yield path

    def heads(self, suffix: str) -> Iterator[tuple[str, Path]]:
        """The files themselves."""
        for path in sorted(self._root.glob(f"*{suffix}")):
            if not path.is_symlink():
                yield path.name, path

    def names(self) -> list[str]:
        """Of whatever is in the directory."""
        return sorted(path.name for path in self._root.glob("*"))

    def stamp(self, name: str) -> int | None:
        """When it was last written, in nanoseconds."""
        try:
            return (self._root / name).stat().st_mtime_ns
        except OSError:
            return None

    def stamps(self) -> dict[str, int | str | None]:
        """When each was last written."""
        return {name: self.stamp(name) for name in self.names()}

    def drop(self, name: str) -> None:
        """Delete it, if it is there."""
        (self._root / name).unlink(missing_ok=True)

    def take(self, name: str, target: Path) -> None:
        """Move it, a link as a link."""
        shutil.move(self._root / name, target)

    def sweep(self) -> None:
        """Delete what killed writers left, by the file system's times."""
        for path in self._root.glob(f"*{TEMPORARY}"):
            with suppress(FileNotFoundError):  # its writer is done
                if path.stat().st_mtime < time.time() - STALE_S:
                    path.unlink()
