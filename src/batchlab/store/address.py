"""Where checkpoints are kept instead of in the store: a directory, or what fsspec can reach."""

import re
import uuid
from pathlib import Path
from urllib.parse import urlsplit

from batchlab.spec import UserError
from batchlab.store.files import Files, UnreachableError, temporary_name, within
from batchlab.store.local import LocalFiles

LOCAL = "file://"
DIRECTORIES = ("checkpoints", "partial")  # ends of stretches, and what is under way
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")


def parse_address(text: str) -> str:
    """The address in one form: a local directory with its whole path, no slash at the end.

    Nothing is read or imported for it but fsspec's list of schemes. Raises `UserError`.
    """
    wrong = f"--checkpoints {text}"
    if not _SCHEME.match(text):
        if not text:
            raise UserError("--checkpoints: an address, as s3://BUCKET/PREFIX, or a directory")
        return f"{LOCAL}{Path(text).absolute()}".rstrip("/")
    scheme, slashes, rest = text.partition("://")
    if not slashes or not rest.strip("/"):
        raise UserError(
            f"{wrong}: an address is SCHEME://PATH, as s3://BUCKET/PREFIX or file:///PATH"
        )
    if "::" in text:
        raise UserError(f"{wrong}: one file system, without ::; what is cached may be out of date")
    try:
        secret = urlsplit(text).password
    except ValueError as error:
        raise UserError(f"{wrong}: {error}") from None
    if secret is not None:
        host = rest.partition("/")[0].rpartition("@")[2]
        raise UserError(
            f"--checkpoints {scheme}://...@{host}: others can see a password that is in an "
            "address; put it where the file system looks for one"
        )
    if scheme in ("file", "local"):
        if not rest.startswith("/"):
            raise UserError(f"{wrong}: a file's address has its whole path, as file:///PATH")
        return f"{LOCAL}{rest}".rstrip("/")
    if scheme == "memory":
        raise UserError(f"{wrong}: is gone when the process ends; name a place that stays")
    from fsspec import available_protocols

    if scheme not in available_protocols():
        raise UserError(f"{wrong}: unknown scheme {scheme!r}; s3, gs, abfs, sftp, file, ...")
    return text.rstrip("/")


def given_address(text: str | None) -> str | None:
    """What `--checkpoints` says, in one form; `None` where checkpoints are in the store."""
    return None if text is None else parse_address(text)


def files_at(address: str, name: str) -> Files:
    """The directory `name` at an address; `UserError` where what its scheme needs is missing.

    `file://` is a local directory and never goes through fsspec.
    """
    if address.startswith(LOCAL):
        directory = within(Path(address.removeprefix(LOCAL)), name)
        return LocalFiles(directory, f" --checkpoints {address}")
    from batchlab.store.remote import RemoteFiles

    return RemoteFiles(address, name)


def try_address(address: str) -> None:
    """Write, list, read and delete a small file: fails now, not after hours of training.

    Raises `UserError` in one line where any of it can't be done.
    """
    name, content = temporary_name(), uuid.uuid4().bytes
    files = files_at(address, DIRECTORIES[-1])
    problem = None
    try:
        files.write(name, content)
        try:
            if name not in files.names():
                problem = "what was written is not listed"
            with files.read(name) as path:
                if path.read_bytes() != content:
                    problem = "what was written is not what is read"
        finally:
            files.drop(name)
    except UnreachableError as error:
        problem = str(error).rpartition(f"{name}: ")[2]
    except OSError as error:
        problem = f"can't be used ({error.strerror})"
    if problem is not None:
        raise UserError(
            f"--checkpoints {address}: {problem}; name a place where files can be written, listed, "
            "read and deleted"
        )
