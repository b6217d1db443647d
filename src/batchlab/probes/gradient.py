"""The length of a gradient."""

from math import sqrt
from typing import Self

import torch

from batchlab.probes.base import group
from batchlab.record import ALL, Reading


class GradientNorm:
    """Euclidean norm of a gradient: of each layer, of `weights`, of `biases` and of `all`."""

    def __init__(self) -> None:
        self._squares: dict[str, torch.Tensor] = {}

    def update(self, layer: str, gradient: torch.Tensor) -> None:
        """Take in a layer's gradient (or a piece of it)."""
        square = gradient.detach().double().square().sum()
        for name in (layer, group(gradient), ALL):
            self._add(name, square)

    def merge(self, other: Self) -> None:
        """Take in other layers of the same gradient."""
        for name, square in other._squares.items():
            self._add(name, square)

    def compute(self) -> list[Reading]:
        """`gradient_norm` by layer and in total."""
        return [Reading("gradient_norm", name, sqrt(v)) for name, v in self._squares.items()]

    def _add(self, name: str, square: torch.Tensor) -> None:
        self._squares[name] = self._squares[name] + square if name in self._squares else square
