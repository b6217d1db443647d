"""How far, and in which direction, the parameters have gone from where they began."""

from collections import defaultdict
from math import sqrt
from typing import Self

import torch

from batchlab.probes.base import group
from batchlab.record import WEIGHTS, Reading


class Displacement:
    """Distance |w - w0|, norm |w| and cosine <w, w0> / |w||w0|, of each layer and in total.

    Norms are Euclidean, in the weights' own unit. Sums are taken in float64, so that the small
    difference of two large float32 vectors keeps its digits. The totals `weights` and `biases`
    are over all layers as one vector. There is no cosine with an initial vector of zero length
    (zero-initialised biases).
    """

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._groups: dict[str, str] = {}

    def update(self, layer: str, current: torch.Tensor, initial: torch.Tensor) -> None:
        """Take in a layer (or a piece of one); both tensors have the same shape."""
        if current.shape != initial.shape:
            raise ValueError(f"{layer}: shape {current.shape} is not the initial {initial.shape}")
        w, w0 = current.detach().double().flatten(), initial.detach().double().flatten()
        step = w - w0
        sums = torch.stack([step @ step, w @ w, w0 @ w0, w @ w0])
        self._sums[layer] = self._sums[layer] + sums if layer in self._sums else sums
        self._groups[layer] = group(current)

    def merge(self, other: Self) -> None:
        """Take in other layers, or other pieces of the same layers."""
        for layer, sums in other._sums.items():
            self._sums[layer] = self._sums[layer] + sums if layer in self._sums else sums
        self._groups |= other._groups

    def compute(self) -> list[Reading]:
        """`distance`, `norm` and `cosine` by layer and for `weights` and `biases` together."""
        totals: dict[str, list[float]] = defaultdict(lambda: [0.0] * 4)
        readings: list[Reading] = []
        for layer, tensor in self._sums.items():
            sums: list[float] = tensor.tolist()
            readings += _readings(layer, sums, with_cosine=self._groups[layer] == WEIGHTS)
            total = totals[self._groups[layer]]
            totals[self._groups[layer]] = [a + b for a, b in zip(total, sums, strict=True)]
        for name, sums in totals.items():
            readings += _readings(name, sums, with_cosine=name == WEIGHTS)
        return readings


def _readings(layer: str, sums: list[float], *, with_cosine: bool) -> list[Reading]:
    moved, now, begun, along = sums
    readings = [Reading("distance", layer, sqrt(moved)), Reading("norm", layer, sqrt(now))]
    if with_cosine and now and begun:
        readings.append(Reading("cosine", layer, along / sqrt(now) / sqrt(begun)))
    return readings
