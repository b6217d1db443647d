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
from batchlab.store.files import Files, UnreachableError
from batchlab.store.local import LocalFiles

SUFFIX = ".safetensors"
SEAL = "sha256"  # the name of the digest among a checkpoint's texts
_DIGEST = re.compile("[0-9a-f]{64}")


class Checkpoints:
    """Files `{key}.safetensors` in a directory, here or elsewhere; reading one runs no code.

    The digest in each is of its key, its texts and its tensors: one that is damaged, or stands
    under another's name, is not taken for a checkpoint. Whatever is asked of files elsewhere
    raises `UnreachableError` where they can't be reached.
    """

    def __init__(self, files: Files | Path) -> None:
        self._files = LocalFiles(files) if isinstance(files, Path) else files

    def where(self, key: str) -> str:
        """Where the checkpoint of `key` is, if it is; `ValueError` where `key` is not a key."""
        return self._files.where(_name(key))

    def save(self, key: str, tensors: dict[str, torch.Tensor], meta: dict[str, str]) -> None:
        """Write a checkpoint, durably, in place of an earlier one of the same key."""
        name = _name(key)
        tensors = {k: v.cpu().contiguous() for k, v in tensors.items()}
        content = save(tensors, meta | {SEAL: _digest(key, tensors, meta)})
        try:
            self._files.write(name, content)
        except OSError as error:
            where = self._files.where(name)
            raise UserError(f"checkpoint {where}: can't be written ({error.strerror})") from None

    def load(self, key: str) -> tuple[dict[str, torch.Tensor], dict[str, str]] | None:
        """Tensors and text of `key`, `None` where there is none; `UserError` where damaged."""
        name = _name(key)
        try:
            with self._files.read(name) as path, safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                meta = dict(file.metadata() or {})
            known = meta.pop(SEAL, None)
            if known is None:
                # Files of older versions have no digest; one whose name is damaged still has it.
                if not self._files.older or any(map(_DIGEST.fullmatch, meta.values())):
                    raise ValueError("its digest has no name")
            elif known != _digest(key, tensors, meta):
                raise ValueError("not what was written")
            return tensors, meta
        except FileNotFoundError:  # dropped meanwhile
            return None
        except UnreachableError:
            raise
        except (SafetensorError, OSError, ValueError, RuntimeError, TypeError) as error:
            raise self.damaged(key, error) from None

    def damaged(self, key: str, problem: Exception) -> UserError:
        """The error of a checkpoint that is there and can't be used."""
        return UserError(
            f"checkpoint {self.where(key)}: damaged ({' '.join(str(problem).split())}); `batchlab "
            f"store repair{self._files.option}` removes it and the run is trained again"
        )

    def texts(self) -> Iterator[tuple[str, dict[str, str]]]:
        """Key and text of every checkpoint that can be read, without its tensors and unchecked."""
        for name, path in self._files.heads(SUFFIX):
            if (key := key_of(name)) is None:
                continue
            try:
                with safe_open(path, framework="pt") as file:
                    meta = file.metadata() or {}
            except (SafetensorError, OSError, ValueError):
                continue
            yield key, meta

    def files(self) -> list[str]:
        """The names of all files that are called like checkpoints, whatever is in them."""
        return [name for name in self._files.names() if name.endswith(SUFFIX)]

    def others(self) -> list[str]:
        """The names of whatever else is in the directory; half-written files too."""
        return [name for name in self._files.names() if not name.endswith(SUFFIX)]

    def stamp(self, key: str) -> int | str | None:
        """What changes when the checkpoint is written again; `None` where there is none."""
        return self._files.stamp(_name(key))

    def stamps(self) -> dict[str, int | str | None]:
        """The stamps of all that are there, by key."""
        stamps = self._files.stamps()
        return {key: stamps[name] for name in stamps if (key := key_of(name)) is not None}

    def drop(self, key: str) -> None:
        """Forget the checkpoint of `key`, if there is one."""
        self._files.drop(_name(key))

    def sweep(self) -> None:
        """Delete what killed writers left half written."""
        self._files.sweep()


def key_of(name: str) -> str | None:
    """The key of the checkpoint that a file of this name is, if it is one."""
    key = name.removesuffix(SUFFIX)
    return key if key != name and _DIGEST.fullmatch(key) else None


def _name(key: str) -> str:
    if not _DIGEST.fullmatch(key):
        raise ValueError(f"{key!r} is not a run's key")
    return f"{key}{SUFFIX}"


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
