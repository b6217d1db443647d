"""Raw summed gradients on disk: a NumPy file a convention, written as the passes end.

Axes: batch sizes, draws, orders, outputs, inputs. `index.json` beside them says which is which, and
of which trials they are.
"""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Self

import numpy as np
import torch

from batchlab.spec import TrialsSpec, UserError
from batchlab.store.files import write_durably

INDEX, UNFINISHED = "index.json", ".part"
BEGUN = INDEX + UNFINISHED


def check_free(root: Path, spec: TrialsSpec) -> None:
    """Raise `UserError` where `root` is no directory, or holds the tensors of such trials."""
    if root.exists() and not root.is_dir():
        raise UserError(f"--keep-tensors {root}: is no directory; name a new one")
    for name in (INDEX, *map(_name, spec.conventions)):
        if (root / name).exists():
            raise UserError(f"--keep-tensors {root}: {name} is there already; name a new directory")


class TensorFiles:
    """Takes the gradients of one trials spec, from any thread and in any order.

    Files have their whole length from the start, so that a full disk is told of before anything
    is measured, and carry `.part` in their name until all passes are in them; so does the index.
    Those of the same trials are gone on with, any others are made anew. Raises `UserError` where
    the directory can't be written or holds finished tensors already.
    """

    def __init__(self, root: Path, spec: TrialsSpec, layer: str, shape: tuple[int, int]) -> None:
        self._root = root
        self._sizes = {size: k for k, size in enumerate(spec.batch_sizes)}
        self._dtype = np.dtype(spec.start.dtype)
        self._shape = (len(spec.batch_sizes), spec.draws, spec.orders, *shape)
        self._bytes = int(np.prod(shape)) * self._dtype.itemsize
        index = {
            "axes": ["batch_size", "draw", "order", "output", "input"],
            "batch_sizes": spec.batch_sizes,
            "layer": layer,
            "spec": spec.model_dump(mode="json"),
        }
        self._index = json.dumps(index, indent=1) + "\n"
        self._files: dict[str, int] = {}
        self._start = 0
        check_free(root, spec)
        self.resumed = self._begun(spec)
        try:
            self._make(spec)
            # Not those that a state was saved with where they were made anew in the same place.
            self.mark = f"{root} {(root / BEGUN).stat().st_mtime_ns}"
        except OSError as error:
            self.abandon()
            raise UserError(f"--keep-tensors {root}: can't be written ({error.strerror})") from None

    def _begun(self, spec: TrialsSpec) -> bool:
        """Whether all files are there, begun for the same trials."""
        with suppress(OSError, UnicodeError):
            same = (self._root / BEGUN).read_text() == self._index
            paths = [self._root / (_name(c) + UNFINISHED) for c in spec.conventions]
            return same and all(path.exists() for path in paths)
        return False

    def _make(self, spec: TrialsSpec) -> None:
        """Open all files. New ones have no index before they are whole: none is gone on with."""
        self._root.mkdir(parents=True, exist_ok=True)
        if not self.resumed:
            (self._root / BEGUN).unlink(missing_ok=True)
        for convention in spec.conventions:
            self._open(convention)
        if not self.resumed:
            write_durably(self._root / BEGUN, self._index.encode())

    def _open(self, convention: str) -> None:
        path = self._root / (_name(convention) + UNFINISHED)
        with path.open("r+b" if self.resumed else "w+b") as file:
            header = {
                "descr": np.lib.format.dtype_to_descr(self._dtype),
                "fortran_order": False,
                "shape": self._shape,
            }
            np.lib.format.write_array_header_1_0(file, header)
            self._start = file.tell()
            self._files[convention] = os.open(path, os.O_WRONLY)
            length = self._start + int(np.prod(self._shape)) * self._dtype.itemsize
            os.posix_fallocate(self._files[convention], 0, length)

    def __call__(
        self, size: int, draw: int, order: int, convention: str, gradient_OI: torch.Tensor
    ) -> None:
        """Write one pass's gradient to its place."""
        _, draws, orders, *_ = self._shape
        place = (self._sizes[size] * draws + draw) * orders + order
        raw = gradient_OI.cpu().contiguous().numpy().tobytes()
        os.pwrite(self._files[convention], raw, self._start + place * self._bytes)

    def sync(self) -> None:
        """All that was taken is on the disk when this returns."""
        for file in self._files.values():
            os.fsync(file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, failed: type[BaseException] | None, *_: object) -> None:
        """Close; where nothing failed, give the files their names, the index last."""
        self.sync()
        for file in self._files.values():
            os.close(file)
        if failed is None:
            for name in (*map(_name, self._files), INDEX):
                (self._root / (name + UNFINISHED)).replace(self._root / name)

    def abandon(self) -> None:
        """Take back what was begun."""
        for convention, file in self._files.items():
            os.close(file)
            if not self.resumed:
                (self._root / (_name(convention) + UNFINISHED)).unlink(missing_ok=True)


def _name(convention: str) -> str:
    return f"{convention}.npy"
