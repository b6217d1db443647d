"""Euclidean norms of many tensors at once, on whatever device they lie.

On a CPU PyTorch starts an operation a tensor, some microseconds each, and a difference is written
to memory before it is squared; where the tensors are small that is most of what a watch costs. There
one compiled call (`sums`) does all, in float64. It has one thread, so that large tensors are left
to PyTorch where that has several.

Shapes: P tensors, B examples, I inputs, O outputs.
"""

from collections.abc import Sequence
from functools import cache
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from batchlab.probes.squares import WIDE, wide

ONE_THREAD = 2**19  # values that one thread sums in less time than it takes to start several
FEW_THREADS = 2  # of PyTorch's, that one compiled thread keeps pace with
_LIKE: dict[torch.dtype, NDArray[np.floating]] = {
    torch.float32: np.empty(0, np.float32),
    torch.float64: np.empty(0, np.float64),
}


class Norms:
    """Norms of tensors shaped as those that it is made for."""

    def __init__(self, like: Sequence[Tensor]) -> None:
        self._dtype = like[0].dtype
        if self._dtype in WIDE and all(t.is_cpu for t in like):
            sums()  # compiled, or read from its cache, before the first step and not in it

    def of(self, tensors: Sequence[Tensor]) -> Tensor:
        """|t| of each (P), in single precision at least."""
        there = self._there(tensors)
        if there is None:
            return torch.stack(torch._foreach_norm([wide(t) for t in tensors]))
        norm_P = np.empty(len(tensors))
        sums().norms(*there, _LIKE[self._dtype], norm_P)
        return torch.from_numpy(norm_P)

    def between(self, tensors: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
        """|t - o| of each pair (P), in single precision at least."""
        there, other = self._there(tensors), self._there(others)
        if there is None or other is None or not np.array_equal(there[1], other[1]):
            # A difference has all its digits in single precision too: only the sums round.
            moved = torch._foreach_add(list(tensors), list(others), alpha=-1)
            return torch.stack(torch._foreach_norm([wide(t) for t in moved]))
        norm_P = np.empty(len(tensors))
        sums().distances(there[0], other[0], there[1], _LIKE[self._dtype], norm_P)
        return torch.from_numpy(norm_P)

    def _there(self, tensors: Sequence[Tensor]) -> tuple[NDArray[np.int64], ...] | None:
        """Addresses and sizes (P); None where the compiled call is not for these."""
        dtype = self._dtype
        if dtype not in _LIKE or not all(_lies(t, dtype) for t in tensors):
            return None
        sizes = [t.numel() for t in tensors]
        if not _fits(sum(sizes)):
            return None
        return np.array([t.data_ptr() for t in tensors]), np.array(sizes)


def rows(a_BI: Tensor, d_BO: Tensor, outputs: int) -> tuple[float, float] | None:
    """The norms of all examples' d_i a_i^T as one vector, and of all d_i; None as a rule tells.

    The compiled call is for contiguous rows in a CPU's memory; else `squares` has the norms.
    `d_BO` may have other dimensions, of as many values in the same order.
    """
    dtype = a_BI.dtype
    if a_BI.ndim != 2 or dtype not in _LIKE or not _lies(a_BI, dtype) or not _lies(d_BO, dtype):
        return None
    examples, inputs = a_BI.shape
    if d_BO.numel() != examples * outputs or not _fits(examples * (inputs + outputs)):
        return None
    told: tuple[float, float] = sums().rows(
        a_BI.data_ptr(), d_BO.data_ptr(), examples, inputs, outputs, _LIKE[dtype]
    )
    return told


@cache
def sums() -> ModuleType:
    """The compiled calls; the first time a process asks, they are read from disk or compiled."""
    from batchlab.probes import sums

    return sums


def _lies(t: Tensor, dtype: torch.dtype) -> bool:
    return t.dtype is dtype and t.is_cpu and t.is_contiguous()


def _fits(values: int) -> bool:
    return values <= ONE_THREAD or torch.get_num_threads() <= FEW_THREADS
