"""Checkpoint files: tensors and text under a key, each written whole or not at all."""

import os
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from batchlab.spec import UserError


class Checkpoints:
    """A directory of `{key}.safetensors` files; reading one runs no code."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def path(self, key: str) -> Path:
        """Where the checkpoint of `key` is, if it is; `ValueError` where `key` is not a key."""
        if len(key) != 64 or set(key) - set("0123456789abcdef"):
            raise ValueError(f"{key!r} is not a run's key")
        return self._root / f"{key}.safetensors"

    def save(self, key: str, tensors: dict[str, torch.Tensor], meta: dict[str, str]) -> None:
        """Write a checkpoint, durably, in place of an earlier one of the same key."""
        path = self.path(key)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            try:
                with temporary.open("wb") as file:
                    file.write(save({k: v.contiguous() for k, v in tensors.items()}, meta))
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"checkpoint {path}: can't be written ({error.strerror})") from None

    def load(self, key: str) -> tuple[dict[str, torch.Tensor], dict[str, str]] | None:
        """Tensors and text of `key`, `None` where there is none; `UserError` where damaged."""
        path = self.path(key)
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                return tensors, file.metadata() or {}
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"checkpoint {path}: damaged ({error}); delete it and the run is trained again"
            ) from None

    def texts(self) -> Iterator[dict[str, str]]:
        """The text of every checkpoint that can be read, without its tensors."""
        for path in sorted(self._root.glob("*.safetensors")):
            try:
                with safe_open(path, framework="pt") as file:
                    yield file.metadata() or {}
            except (SafetensorError, OSError):
                continue

    def drop(self, key: str) -> None:
        """Forget the checkpoint of `key`, if there is one."""
        self.path(key).unlink(missing_ok=True)
