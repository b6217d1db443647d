"""fsspec's file system of an address. fsspec comes with PyTorch, which requires it."""

from typing import Any

from batchlab.spec import UserError

# Where one request puts an object whole or not at all. Elsewhere a file is seen while it grows.
OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "memory"}


def file_system(address: str, name: str) -> tuple[Any, str]:
    """The file system, and what it calls the directory `name` at the address.

    fsspec is imported here and no earlier, and what it needs for the scheme by fsspec. Nothing is
    asked of a server. Raises `UserError` where the scheme or its driver is not to be had.
    """
    try:
        from fsspec.core import url_to_fs

        system, path = url_to_fs(f"{address}/{name}")
    except ImportError as error:
        extra = ": pip install 'batchlab[s3]'" if address.startswith("s3") else ""
        raise UserError(f"--checkpoints {address}: {said(error)}{extra}") from None
    except Exception as error:
        raise UserError(f"--checkpoints {address}: can't be used ({said(error)})") from None
    return system, path.rstrip("/")


def puts_whole(system: Any) -> bool:
    """Whether a file is there whole or not at all while it is being put, as fsspec does not say."""
    known = system.protocol  # a scheme, or all that mean the same
    return bool(OBJECT_STORES & {*([known] if isinstance(known, str) else known)})


def said(error: Exception) -> str:
    """What an error says, in a line of bounded length."""
    line = " ".join(str(error).split()) or type(error).__name__
    return line if len(line) <= 300 else f"{line[:300]}..."
