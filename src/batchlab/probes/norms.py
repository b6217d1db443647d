"""Euclidean norms of many tensors at once, on whatever device they lie.

On a CPU PyTorch starts one operation a tensor and writes a difference to memory before it is
squared; where tensors are small that is most of what a watch costs. There one compiled call
(`sums`) does all, in float64, and tells arrays of NumPy's: making a tensor takes longer than some
of the sums. It has one thread, so that large tensors are left to PyTorch where that has several.

Shapes: P tensors, K layers, B examples, I inputs, O outputs.
"""

from collections.abc import Sequence
from functools import cache
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from batchlab.probes.squares import entries

Floats = NDArray[np.float64]
Place = tuple[int, int, int, int, int]  # addresses of a (B, I) and d (B, O); B, I and O
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
        self.dtype = like[0].dtype
        self._sizes = [t.numel() for t in like]
        self._size_P = np.array(self._sizes, np.int64)
        self._values = sum(self._sizes)
        self._begun = list(begun)
        self.compiled = self.dtype in _LIKE and all(t.is_cpu for t in like)
        if self.compiled:
            sums()  # before the first step and not in it
        if self.compiled and begun:
            places = self._places(begun)
            self.compiled = places is not None
            self._begun_P = np.array(places or [], np.int64)

    def of(self, tensors: Sequence[Tensor]) -> Tensor | Floats:
        """|t| of each (P), in single precision at least."""
        places = self._places(tensors)
        if places is None:
            return _norms(tensors)
        norm_P = np.empty(len(places))
        sums().norms(np.array(places, np.int64), self._size_P, _LIKE[self.dtype], norm_P)
        return norm_P

    def with_rows(
        self, tensors: Sequence[Tensor], rows_K7: list[int], factor: float
    ) -> tuple[Floats, Floats] | None:
        """|t| of each (P), and `factor` times what `of_rows` tells of layers (P), in one call.

        A layer's seven numbers are its `Place` and which two of the P its norms are of, -1 for
        none. `None` where the compiled call is not for the tensors.
        """
        places = self._places(tensors)
        if places is None:
            return None
        many, like = len(places), _LIKE[self.dtype]
        told = np.empty(2 * many)
        sums().norms_and_rows(
            np.array(places + rows_K7, np.int64), self._size_P, like, factor, told
        )
        return told[:many], told[many:]

    def moved(self, tensors: Sequence[Tensor]) -> Tensor | Floats:
        """|t - begun| of each (P), in single precision at least."""
        places = self._places(tensors)
        if places is None:
            with torch.no_grad():
                # A difference has all its digits in single precision too: only the sums round.
                return _norms(torch._foreach_add(list(tensors), self._begun, alpha=-1))
        norm_P, like = np.empty(len(places)), _LIKE[self.dtype]
        sums().distances(np.array(places, np.int64), self._begun_P, self._size_P, like, norm_P)
        return norm_P

    def _places(self, tensors: Sequence[Tensor]) -> list[int] | None:
        """Their addresses; `None` where the compiled call is not for them."""
        if not self.compiled or not _fits(self._values):
            return None
        dtype, told = self.dtype, []
        try:
            for t, size in zip(tensors, self._sizes, strict=True):
                if type(t) not in _ORDINARY or t.dtype is not dtype or t.numel() != size:
                    return None
                if not (t.is_contiguous() and t.is_cpu):
                    return None
                told.append(t.data_ptr())
        except RuntimeError:  # a sparse gradient has no memory of its own
            return None
        return told


def place(a: Tensor, d: Tensor, shape: torch.Size) -> Place | None:
    """Where a (B, I) and d lie for the compiled call, while they live; `None` if it isn't theirs.

    `d` may have other dimensions than `shape`, (B, O), of as many values in the same order. The
    call is for contiguous values in a CPU's memory; `squares` has the norms of all else.
    """
    dtype = a.dtype
    if (
        dtype not in _LIKE
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
        return a.data_ptr(), d.data_ptr(), examples, inputs, outputs
    except RuntimeError:  # within torch.func, whose tensors have no memory of their own
        return None


def of_rows(
    a: int, d: int, examples: int, inputs: int, outputs: int, dtype: torch.dtype
) -> tuple[float, float]:
    """The norms of all examples' d_i a_i^T as one vector, and of all d_i as one, from a `Place`."""
    told: tuple[float, float] = sums().rows(a, d, examples, inputs, outputs, _LIKE[dtype])
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
