"""Checkpoint files: tensors and text under a key, each written whole or not at all."""

import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from batchlab.spec import UserError
from batchlab.store.files import TEMPORARY, sweep, write_durably

SUFFIX = ".safetensors"
SEAL = "sha256"  # the name of the digest among a checkpoint's texts
_DIGEST = re.compile("[0-9a-f]{64}")


class Checkpoints:
    """A directory of `{key}.safetensors` files; reading one runs no code.

    The digest in each is of its key, its texts and its tensors: one that is damaged, or stands
    under another's name, is not taken for a checkpoint.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def path(self, key: str) -> Path:
        """Where the checkpoint of `key` is, if it is; `ValueError` where `key` is not a key."""
        if not _is_key(key):
            raise ValueError(f"{key!r} is not a run's key")
        return self._root / f"{key}{SUFFIX}"

    def save(self, key: str, tensors: dict[str, torch.Tensor], meta: dict[str, str]) -> None:
        """Write a checkpoint, durably, in place of an earlier one of the same key."""
        path = self.path(key)
        tensors = {k: v.cpu().contiguous() for k, v in tensors.items()}
        content = save(tensors, meta | {SEAL: _digest(key, tensors, meta)})
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            write_durably(path, content)
        except OSError as error:
            raise UserError(f"checkpoint {path}: can't be written ({error.strerror})") from None

    def load(self, key: str) -> tuple[dict[str, torch.Tensor], dict[str, str]] | None:
        """Tensors and text of `key`, `None` where there is none; `UserError` where damaged."""
        path = self.path(key)
        if not path.is_symlink() and not path.exists():
            return None
        try:
            if path.is_symlink():
                raise ValueError("a link out of the store")
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                meta = dict(file.metadata() or {})
            known = meta.pop(SEAL, None)
            if known is None:
                # Files of older versions have no digest; one whose name is damaged still has it.
                if any(map(_DIGEST.fullmatch, meta.values())):
                    raise ValueError("its digest has no name")
            elif known != _digest(key, tensors, meta):
                raise ValueError("not what was written")
            return tensors, meta
        except FileNotFoundError:  # dropped meanwhile
            return None
        except (SafetensorError, OSError, ValueError, RuntimeError, TypeError) as error:
            said = " ".join(str(error).split())
            raise UserError(
                f"checkpoint {path}: damaged ({said}); `batchlab store repair` removes it and the "
                "run is trained again"
            ) from None

    def texts(self) -> Iterator[dict[str, str]]:
        """The text of every checkpoint that can be read, without its tensors and unchecked."""
        for path in self.files():
            try:
                if not path.is_symlink():
                    with safe_open(path, framework="pt") as file:
                        yield file.metadata() or {}
            except (SafetensorError, OSError, ValueError):
                continue

    def files(self) -> list[Path]:
        """All files that are called like checkpoints, whatever is in them."""
        return sorted(self._root.glob(f"*{SUFFIX}"))

    def others(self) -> list[Path]:
        """Whatever else is in the directory; half-written files too."""
        return sorted(path for path in self._root.glob("*") if path.suffix != SUFFIX)

    def stamp(self, key: str) -> int | None:
        """When the checkpoint was last written, in nanoseconds; `None` where there is none."""
        try:
            return self.path(key).stat().st_mtime_ns
        except OSError:
            return None

    def stamps(self) -> dict[str, int | None]:
        """The stamps of all that are there, by key."""
        return {path.stem: self.stamp(path.stem) for path in self.files() if _is_key(path.stem)}

    def drop(self, key: str) -> None:
        """Forget the checkpoint of `key`, if there is one."""
        self.path(key).unlink(missing_ok=True)

    def sweep(self) -> None:
        """Delete what killed writers left half written."""
        sweep(self._root)


def _is_key(text: str) -> bool:
    return _DIGEST.fullmatch(text) is not None


def temporary(path: Path) -> bool:
    """Whether a file is one that is being written, or was when its writer was killed."""
    return path.suffix == TEMPORARY


def _digest(key: str, tensors: Mapping[str, torch.Tensor], meta: Mapping[str, str]) -> str:
    """SHA-256 of a checkpoint's content, in an order that does not depend on the file's."""
    known = hashlib.sha256(key.encode())
    for name, text in sorted(meta.items()):
        known.update(f"\n{name}={len(text)}:{text}".encode("utf-8", "surrogateescape"))
    for name, tensor in sorted(tensors.items()):
        known.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.reshape(-1)
        raw: npt.NDArray[np.uint8] = flat.view(torch.uint8).numpy()
        known.update(raw.data)
    return known.hexdigest()
