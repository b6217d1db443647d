"""A norm of every parameter along training, gathered without waiting for the device.

Shapes: P parameters, S measured steps.
"""

from collections.abc import Sequence

import numpy as np
import torch

from batchlab.probes.blocks import Blocks, Floats
from batchlab.record import ALL, BIASES, WEIGHTS, Reading


class Curve:
    """Of each parameter, of `weights` (two dimensions or more), of `biases` and of `all`."""

    def __init__(self, name: str, names: Sequence[str], dimensions: Sequence[int]) -> None:
        """`name` is the quantity's; `names` and `dimensions` are those of the parameters."""
        self.name = name
        self._names = tuple(names)
        self._is_weight_P = np.array(dimensions) >= 2
        self._steps: list[int] = []
        self._norms = Blocks()  # (P) a step

    def update(self, step: int, norms_P: torch.Tensor | Floats) -> None:
        """Take in one step's norms, without waiting for the device."""
        self._steps.append(step)
        self._norms.add(norms_P)

    @property
    def steps(self) -> tuple[int, ...]:
        """The measured steps, from 0."""
        return tuple(self._steps)

    @property
    def values(self) -> dict[str, Floats]:
        """The measured values by name (S)."""
        return self._by_name(None)

    def readings(self) -> list[Reading]:
        """The last values; empty where there are none."""
        if not self._steps:
            return []
        return [Reading(self.name, layer, float(v[-1])) for layer, v in self._by_name(1).items()]

    def _by_name(self, last: int | None) -> dict[str, Floats]:
        norm_SP = self._norms.array(last)
        if norm_SP is None:
            norm_SP = np.zeros((0, len(self._names)))
        told = {ALL: np.ones(len(self._names), bool), WEIGHTS: self._is_weight_P}
        told[BIASES] = ~self._is_weight_P
        totals = {n: np.linalg.norm(norm_SP[:, of], axis=1) for n, of in told.items() if of.any()}
        return totals | {name: norm_SP[:, p] for p, name in enumerate(self._names)}

    def __str__(self) -> str:
        if not self._steps:
            return f"{self.name}: no step was measured"
        last = self._by_name(1)[ALL][-1]
        return f"{self.name} {last:.4g} at step {self._steps[-1]} ({len(self._steps)} measured)"
