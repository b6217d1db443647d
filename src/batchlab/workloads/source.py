"""Where published data files are found: the user's folder, then the cache, then the mirrors.

Nothing is used unless the SHA-256 of its decompressed bytes is the published file's, wherever
it lay; compressed bytes prove nothing, since a file may be packed again.
"""

import gzip
import hashlib
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from batchlab.spec import UserError

DATA_DIR_VARIABLE = "BATCHLAB_DATA_DIR"
TIMEOUT_S = (3.0, 10.0)  # to connect, and between bytes: being offline is told within seconds


def data_dir_from_environment() -> Path | None:
    """The folder that `BATCHLAB_DATA_DIR` names; None where it is unset or empty."""
    named = os.environ.get(DATA_DIR_VARIABLE)
    return Path(named) if named else None


@dataclass(frozen=True, slots=True)
class Source:
    """A data set's files: their folder's name, mirrors (URLs ending in /), SHA-256 by file name.

    File names are those without `.gz`; mirrors and cache hold them with it.
    """

    name: str
    mirrors: tuple[str, ...]
    sha256: Mapping[str, str]

    def read(self, file: str, data_dir: Path | None) -> bytes:
        """The decompressed bytes of one of the files.

        `data_dir` None means the environment's. Raises `UserError` where the folder is not one,
        where a file in it is not the published one, or where the file is nowhere to be had.
        """
        folder = _folder(data_dir)
        if folder:
            for path in self._places(file, folder):
                if os.path.isfile(path):  # unlike Path's, False where it may not be looked at
                    return self._own(path, file)
        return self._remote(file, folder)

    def _places(self, file: str, folder: Path) -> Iterator[Path]:
        dotted = file.replace("-idx", ".idx")  # how some archives unpack them
        for place in (folder, folder / self.name):
            for variant in (file, dotted):
                yield place / variant
                yield place / f"{variant}.gz"

    def _own(self, path: Path, file: str) -> bytes:
        """A file of the user's: told and never deleted where it is not the published one."""
        try:
            return _checked(path, self.sha256[file], gzipped=path.suffix == ".gz")
        except ValueError as error:
            raise UserError(
                f"{path}: {error}; replace the file, or remove it to have it downloaded"
            ) from None
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({_brief(error)})") from None

    def _remote(self, file: str, folder: Path | None) -> bytes:
        import pooch

        cached = pooch.os_cache("batchlab") / self.name / f"{file}.gz"
        try:
            return _checked(cached, self.sha256[file], gzipped=True)
        except (FileNotFoundError, NotADirectoryError):
            pass
        except (ValueError, OSError) as error:
            _discard(cached, error)
        failures = []
        for mirror in self.mirrors:
            try:
                return _download(f"{mirror}{file}.gz", cached, self.sha256[file])
            except (ValueError, OSError) as error:  # requests' errors are OSErrors
                failures.append(f"{mirror} ({_brief(error)})")
        raise UserError(
            f"{self.name}: {file} is not in the data directory "
            f"({folder or f'none given: --data-dir or {DATA_DIR_VARIABLE}'}), "
            f"nor in the cache ({cached.parent}), nor to be had from {' or '.join(failures)}; "
            f"give a data directory that has it, or use --workload digits, which needs no files"
        )


def _folder(data_dir: Path | None) -> Path | None:
    """The user's folder, from the option or the environment, where it is one."""
    folder = data_dir or data_dir_from_environment()
    if folder and not os.path.isdir(folder):
        option = "--data-dir" if data_dir else DATA_DIR_VARIABLE
        wrong = "is not a directory" if os.path.exists(folder) else "does not exist"
        raise UserError(f"{option} {folder}: {wrong}; must be the directory of the data files")
    return folder


def _checked(path: Path, sha256: str, *, gzipped: bool) -> bytes:
    """The file's decompressed bytes; `ValueError` says in what they are not the published ones."""
    right = f"its decompressed bytes must have SHA-256 {sha256}"
    try:
        raw = path.read_bytes()
        content = gzip.decompress(raw) if gzipped else raw
    except EOFError:
        raise ValueError(f"cut short, the gzip stream has no end; {right}") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"not gzip, or damaged ({error}); {right}") from None
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise ValueError(f"wrong SHA-256 {found} of {len(content)} bytes; {right}")
    return content


def _discard(cached: Path, why: Exception) -> None:
    """Delete a bad file of the cache, which Pooch would otherwise take for the published one."""
    try:
        cached.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{cached}: {_brief(why)}; delete it ({_brief(error)})") from None


def _download(url: str, cached: Path, sha256: str) -> bytes:
    """Fetch into the cache and read from there.

    Pooch writes a temporary file, which it moves in place only after the check, and else deletes.
    """
    import pooch

    # Whole answers and not streams: a stream that fails midway would leave its socket open.
    # As they are: a server may otherwise unpack gzip on the way.
    fetch = pooch.HTTPDownloader(
        timeout=TIMEOUT_S, stream=False, headers={"Accept-Encoding": "identity"}
    )

    def fetch_and_check(url: str, output: str, _: object) -> None:
        fetch(url, output, None)
        _checked(Path(output), sha256, gzipped=True)

    pooch.get_logger().setLevel("WARNING")
    pooch.retrieve(
        url, known_hash=None, fname=cached.name, path=cached.parent, downloader=fetch_and_check
    )
    return _checked(cached, sha256, gzipped=True)


def _brief(error: Exception) -> str:
    """Why, on one short line."""
    if hasattr(error, "response"):  # requests' errors, whose own text is a paragraph
        answer = error.response
        return type(error).__name__ if answer is None else f"HTTP {answer.status_code}"
    return str(error)
