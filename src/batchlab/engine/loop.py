"""The compiled loop over small steps, for one perceptron and a block of its samples.

Shapes: S samples of a block of steps, I and J a hidden layer's inputs and outputs, O classes.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

NUMBA = find_spec("numba") is not None  # a GPU machine may do without
BLOCK = 64  # samples that the loop goes on without a matrix product of the first layer
LINE = 8  # gates are counted in 8 bytes, and no two members count in one cache line
OPEN = 2**62  # gates passed, more than anyone will
_PART = 512  # units: enough for a thread of its own
_MOST_PARTS = 16
_ALIGNED = 64  # units: whole cache lines


def can_compile(layers: int, device: str) -> bool:
    """The loop is for a CPU, and for three layers or more: two hidden ones."""
    return NUMBA and device == "cpu" and layers > 2


def block_size(size: int) -> int:
    """Samples of a block of steps on `size` samples each: whole steps, one at least."""
    return max(1, BLOCK // size) * size


def units(width: int, part: int, parts: int) -> tuple[int, int]:
    """Where a part's units of a layer begin and end: on whole cache lines where there are many."""
    each = (width + parts - 1) // parts
    if width >= _ALIGNED * parts:
        each = (each + _ALIGNED - 1) // _ALIGNED * _ALIGNED
    return min(width, part * each), min(width, part * each + each)


def divide(widths: Sequence[int]) -> int:
    """Into how many parts to divide the units of layers of these widths, the last one left out."""
    return min(_MOST_PARTS, max(1, min(widths[:-1]) // _PART))


class Loop:
    """Takes blocks of steps, one at a time, by a team of threads who all call it together.

    What is summed over units is summed by part, so that the numbers depend on the parts, but not on
    how many the team are.
    """

    def __init__(
        self,
        widths: Sequence[int],
        samples: int,
        dtype: torch.dtype,
        *,
        parts: int = 1,
        members: int = 1,
    ) -> None:
        """`widths`: the layers' outputs, from the first to the last; blocks of up to `samples`."""
        self._widths, self._count = widths, parts
        self.members = min(parts, members)
        self._parts = np.arange(self.members + 1) * self._count // self.members
        sums, logits = (2, parts, samples, max(widths[:-1])), (parts, samples, widths[-1])
        self._sums, self._logits = (torch.zeros(s, dtype=dtype).numpy() for s in (sums, logits))
        room = max(samples, *widths) + 4  # the loop looks at four at a time
        self._chosen = np.zeros((self.members, room), np.int64)
        self._factor = torch.zeros(self.members, room, dtype=dtype).numpy()
        self._every = np.arange(samples)
        self._top = torch.zeros(self.members, samples, widths[-1], dtype=dtype).numpy()
        self._gates = np.zeros(self.members * LINE, np.int64)

    def pack(self, weight_XJ: torch.Tensor) -> torch.Tensor:
        """A copy of a weight matrix over units J as `take` wants it: flat, part after part."""
        return torch.cat([weight_XJ[:, j].reshape(-1) for j in self._all(weight_XJ.shape[1])])

    def unpack(self, flat: torch.Tensor, weight_XJ: torch.Tensor) -> None:
        """Copy what `pack` made back into the matrix."""
        rows, start = weight_XJ.shape[0], 0
        for j in self._all(weight_XJ.shape[1]):
            end = start + rows * (j.stop - j.start)
            weight_XJ[:, j] = flat[start:end].view(rows, -1)
            start = end

    def _all(self, width: int) -> list[slice]:
        return [slice(*units(width, part, self._count)) for part in range(self._count)]

    def slices(self, member: int) -> list[slice]:
        """The units of the first layer that are this member's, part by part."""
        return self._all(self._widths[0])[self._parts[member] : self._parts[member + 1]]

    def release(self) -> None:
        """Let every member through all gates: one of them will not come."""
        self._gates[:] = OPEN

    def take(
        self,
        member: int,
        z_SI: torch.Tensor,
        gram_SS: torch.Tensor,
        y_S: torch.Tensor,
        hidden: Sequence[torch.Tensor],
        biases_J: Sequence[torch.Tensor],
        top: torch.Tensor,
        top_bias_O: torch.Tensor,
        size: int,
        rate: float,
        inputs: Sequence[torch.Tensor],
        updates: Sequence[torch.Tensor],
        *,
        ends: bool,
    ) -> None:
        """Steps on `size` samples each, in place: `kernels.steps` says what the arguments are.

        `inputs` (S, .) are those of all layers but the first, `updates` (S, .) those of all. Every
        member gives the same tensors, but for `gram_SS`, which may be its own.
        """
        from batchlab.engine.kernels import steps  # here, because loading takes a second

        steps(
            z_SI.numpy(),
            gram_SS.numpy(),
            y_S.numpy(),
            _arrays(hidden),
            _arrays(biases_J),
            top.numpy(),
            top_bias_O.numpy(),
            size,
            rate,
            _arrays(inputs),
            _arrays(updates[:-1]),
            updates[-1].numpy(),
            ends,
            self._sums,
            self._logits,
            self._chosen[member],
            self._factor[member],
            self._every,
            self._top[member],
            self._parts,
            member,
            self._gates,
        )


def _arrays(tensors: Sequence[torch.Tensor]) -> tuple[npt.NDArray[Any], ...]:
    return tuple(tensor.numpy() for tensor in tensors)


def compile_loop(hidden: int, dtype: torch.dtype) -> None:
    """Have the loop compiled for so many hidden layers, or loaded where it was compiled before."""
    if not NUMBA or hidden < 2:
        return
    widths = [4] * hidden + [2]
    u = [torch.zeros(1, width, dtype=dtype) for width in widths]
    h = [torch.zeros_like(one) for one in u[:-1]]
    weights = [torch.zeros(a * b, dtype=dtype) for a, b in pairwise(widths)]
    biases = [torch.zeros(width, dtype=dtype) for width in widths[1:]]
    Loop(widths, 1, dtype).take(
        0,
        torch.zeros(1, widths[0], dtype=dtype),
        torch.ones(1, 1, dtype=dtype),
        torch.zeros(1, dtype=torch.int64),
        weights[:-1],
        biases[:-1],
        weights[-1],
        biases[-1],
        1,
        1.0,
        h,
        u,
        ends=False,
    )
