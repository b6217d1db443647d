"""Files that are there whole or not at all."""

import os
from pathlib import Path


def write(path: Path, content: str | bytes) -> None:
    """Write the content beside the path, then put it in its place; `OSError` as it comes."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    data = content.encode() if isinstance(content, str) else content
    try:
        beside.write_bytes(data)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
