"""JSON that any reader takes: no NaN, no infinities, and whole or not there."""

import json
import math
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from batchlab.report.files import write


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
