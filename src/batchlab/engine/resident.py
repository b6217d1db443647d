"""Plain SGD at small batches on a GPU by one kernel for many steps (`resident_kernel.py`).

Shapes: N samples of a stretch of steps, I inputs.
"""

import warnings
from dataclasses import dataclass

import torch
from torch import nn

from batchlab.engine.launching import can_launch
from batchlab.engine.step import InPlaceSGD, PlainSGD

RESIDENT = 4  # up to this batch size: beyond, its registers spill (docs/engine.md)
WARPS = 8  # of a program: 255 registers for each of its threads
# Weights of a program: 144 of those registers, so that a step has the others to work in.
_MOST_WEIGHTS = 144 * 32 * WARPS


@dataclass(frozen=True, slots=True)
class Division:
    """How a perceptron with two hidden layers is divided among programs, one a processor."""

    inputs: int
    first: int
    second: int
    classes: int
    first_each: int  # units of the first hidden layer that are a program's own, a power of two
    second_each: int

    @property
    def programs(self) -> int:
        """How many there are."""
        parts = -(-self.first // self.first_each), -(-self.second // self.second_each)
        return max(parts)

    @property
    def top(self) -> tuple[int, int]:
        """The classes in two powers of two, so that few are filled up; the second may be 0."""
        most = _power(self.classes + 1) // 2
        return most, _power(self.classes - most) if self.classes > most else 0

    @property
    def weights(self) -> int:
        """That a program holds, a layer's sides filled up to powers of two."""
        inputs, first, second = (_power(n) for n in (self.inputs, self.first, self.second))
        hidden = self.first_each * second + self.second_each * first
        return self.first_each * inputs + hidden + sum(self.top) * second


def _power(least: int) -> int:
    """The power of two that is so much or the next larger one."""
    return 1 << (least - 1).bit_length()


def divide(layers: list[nn.Linear], processors: int) -> Division | None:
    """Among so many processors; None where that is not what the kernel is for."""
    if len(layers) != 3:
        return None
    inputs = layers[0].in_features
    first, second, classes = (layer.out_features for layer in layers)
    division = Division(
        inputs,
        first,
        second,
        classes,
        _power(-(-first // processors)),
        _power(-(-second // processors)),
    )
    return division if division.weights <= _MOST_WEIGHTS else None


def division(layers: list[nn.Linear]) -> Division | None:
    """For the GPU that the layers are on; None where the kernel can't take their steps."""
    device = layers[0].weight.device
    if device.type != "cuda" or not all(_simple(p) for layer in layers for p in layer.parameters()):
        return None
    one = divide(layers, torch.cuda.get_device_properties(device).multi_processor_count)
    return one if one is not None and can_launch() else None


def _simple(parameter: nn.Parameter) -> bool:
    """As the kernel takes it."""
    return parameter.dtype == torch.float32 and parameter.is_contiguous()


class ResidentSGD(PlainSGD):
    """Plain SGD on a perceptron with two hidden layers, whose weights stay in a GPU's registers.

    They are the model's own again after every stretch of steps, so that these should be long.
    Where the kernel can't be built, which the first stretch shows (an older Triton), a
    `RuntimeWarning` says so and steps are plain ones.
    """

    stretch = 1024
    recordable = False

    def __init__(self, layers: list[nn.Linear], rate: float, division: Division) -> None:
        """`division`: of these layers; all of its programs must run at the same time."""
        super().__init__()
        self._rate, self._division = rate, division
        self._layers, self._builds = layers, False  # until it has been seen to
        self._plain: InPlaceSGD | None = None
        self._parameters = [p.detach() for m in layers for p in (m.weight, m.bias)]
        self._words = self._parameters[0].new_empty(0, dtype=torch.int64)

    def steps(self, x_NI: torch.Tensor, y_N: torch.Tensor, size: int) -> None:
        """All of them by one kernel, on the current stream."""
        if self._plain is None:
            try:
                self._take(x_NI, y_N, size)
            except Exception as error:  # of a compiler, a loader, a driver
                if self._builds:
                    raise
                first = (str(error).splitlines() or [""])[0]
                told = f"small batches take plain steps: {type(error).__name__}: {first}"
                warnings.warn(told, RuntimeWarning, stacklevel=2)
                self._plain = InPlaceSGD(self._layers, self._rate)
            else:
                self._builds = True
                return
        self._plain.steps(x_NI, y_N, size)
        self._signs += self._plain.signs()

    def _take(self, x_NI: torch.Tensor, y_N: torch.Tensor, size: int) -> None:
        from batchlab.engine.resident_kernel import take

        one, samples = self._division, len(x_NI)
        signs = x_NI.new_empty(-(-samples // size))
        room = 2 * size * (one.first + one.second)
        if len(self._words) != room:
            self._words = self._words.new_empty(room)
        self._words.zero_()
        most, rest = one.top
        with torch.cuda.device_of(x_NI):
            take[(one.programs,)](
                x_NI.contiguous(),
                y_N.contiguous(),
                signs,
                *self._parameters,
                self._words,
                samples,
                self._rate,
                inputs=one.inputs,
                first=one.first,
                second=one.second,
                classes=one.classes,
                I=_power(one.inputs),
                H=_power(one.first),
                J=_power(one.second),
                O=most,
                R=rest,
                parts=2 if rest else 1,
                U=one.first_each,
                V=one.second_each,
                size=size,
                num_warps=WARPS,
                num_stages=1,
                launch_cooperative_grid=True,
            )
        self._signs.append(signs)
