"""Euclidean norms of many tensors at once, on whatever device they lie.

On a CPU PyTorch starts one operation a tensor and writes a difference to memory before it is
squared; where tensors are small that is most of what a watch costs. There one compiled call
(`sums`) does all, in float64, and tells arrays of NumPy's: making a tensor takes longer than some
of the sums. It has one thread, so that large tensors are left to PyTorch where that has several.

Shapes: P tensors, B examples, I inputs, O outputs.
"""

from collections.abc import Sequence
from functools import cache
from struct import Struct
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from batchlab.probes.squares import entries

Floats = NDArray[np.float64]
Addresses = NDArray[np.int64]
ONE_THREAD = 2**19  # values that one thread sums in less time than it takes to start several
FEW_THREADS = 2  # of PyTorch's, that the compiled one keeps pace with
_ORDINARY = (Tensor, nn.Parameter)  # a subclass may have no memory, or not all of the tensor's
_LIKE: dict[torch.dtype, NDArray[np.floating]] = {
    torch.float32: np.empty(0, np.float32),
    torch.float64: np.empty(0, np.float64),
}


class Norms:
    """Norms of tensors shaped as those of `like`, and of their differences to those of `begun`."""

    def __init__(self, like: Sequence[Tensor], begun: Sequence[Tensor] = ()) -> None:
        self._dtype = like[0].dtype
        self._sizes = [t.numel() for t in like]
        self._size_P = np.array(self._sizes, np.int64)
        self._values = sum(self._sizes)
        self._address_P, self._begun_P = (np.empty(len(like), np.int64) for _ in range(2))
        self._write = Struct(f"{len(like)}q").pack_into  # quicker than NumPy from a list
        self._begun = list(begun)
        self._compiled = self._dtype in _LIKE and all(t.is_cpu for t in like)
        if self._compiled:
            sums()  # before the first step and not in it
            self._compiled = not begun or self._lies(begun, self._begun_P)

    def of(self, tensors: Sequence[Tensor]) -> Tensor | Floats:
        """|t| of each (P), in single precision at least."""
        if not self._lies(tensors, self._address_P):
            return _norms(tensors)
        norm_P = np.empty(len(self._sizes))
        sums().norms(self._address_P, self._size_P, _LIKE[self._dtype], norm_P)
        return norm_P

    def moved(self, tensors: Sequence[Tensor]) -> Tensor | Floats:
        """|t - begun| of each (P), in single precision at least."""
        if not self._lies(tensors, self._address_P):
            with torch.no_grad():
                # A difference has all its digits in single precision too: only the sums round.
                return _norms(torch._foreach_add(list(tensors), self._begun, alpha=-1))
        norm_P = np.empty(len(self._sizes))
        like = _LIKE[self._dtype]
        sums().distances(self._address_P, self._begun_P, self._size_P, like, norm_P)
        return norm_P

    def _lies(self, tensors: Sequence[Tensor], address_P: Addresses) -> bool:
        """Whether the compiled call is for these; writes where they are."""
        if not self._compiled or not _fits(self._values):
            return False
        dtype, told = self._dtype, []
        try:
            for t, size in zip(tensors, self._sizes, strict=True):
                if type(t) not in _ORDINARY or t.dtype is not dtype or t.numel() != size:
                    return False
                if not (t.is_contiguous() and t.is_cpu):
                    return False
                told.append(t.data_ptr())
        except RuntimeError:  # a sparse gradient has no memory of its own
            return False
        self._write(address_P.data, 0, *told)
        return True


def of_rows(a: Tensor, d: Tensor, shape: torch.Size) -> tuple[float, float] | None:
    """The norms of all examples' d_i a_i^T as one vector, and of all d_i as one.

    `a` is (B, I), and `d` may have other dimensions than `shape`, (B, O), of as many values in the
    same order. The compiled call is for contiguous values in a CPU's memory: `None` where these are
    not, and `squares` has the norms.
    """
    dtype = a.dtype
    like = _LIKE.get(dtype)
    if (
        like is None
        or d.dtype is not dtype
        or type(a) is not Tensor
        or type(d) is not Tensor
        or not (a.is_contiguous() and d.is_contiguous() and d.is_cpu)  # then `a` is there too
    ):
        return None
    (examples, inputs), (rows, outputs) = a.shape, shape
    values = examples * (inputs + outputs)
    if rows != examples or (values > ONE_THREAD and not _fits(values)):
        return None
    try:
        places = a.data_ptr(), d.data_ptr()
    except RuntimeError:  # within torch.func, whose tensors have no memory of their own
        return None
    told: tuple[float, float] = sums().rows(*places, examples, inputs, outputs, like)
    return told


@cache
def sums() -> ModuleType:
    """The compiled calls; the first time a process asks, they are read from disk or compiled."""
    from batchlab.probes import sums

    return sums


def _norms(tensors: Sequence[Tensor]) -> Tensor:
    with torch.no_grad():
        return torch.stack(torch._foreach_norm([entries(t) for t in tensors]))


def _fits(values: int) -> bool:
    return values <= ONE_THREAD or torch.get_num_threads() <= FEW_THREADS
