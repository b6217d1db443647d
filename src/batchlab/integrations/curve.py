"""A norm of every parameter along training, gathered without waiting for the device.

Shapes: P parameters, S measured steps.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from batchlab.record import ALL, BIASES, WEIGHTS, Reading

Floats = NDArray[np.float64]
BLOCK = 256  # steps that stay on the device before they come to the host together


class Curve:
    """Of each parameter, of `weights` (two dimensions or more), of `biases` and of `all`."""

    def __init__(self, name: str, names: Sequence[str], dimensions: Sequence[int]) -> None:
        """`name` is the quantity's; `names` and `dimensions` are those of the parameters."""
        self.name = name
        self._names = tuple(names)
        self._is_weight_P = np.array(dimensions) >= 2
        self._steps: list[int] = []
        self._pending: list[torch.Tensor] = []
        self._there: list[Floats] = []  # (steps, P) each

    def update(self, step: int, norms_P: torch.Tensor) -> None:
        """Take in one step's norms; no host-device sync but once in `BLOCK` steps."""
        self._steps.append(step)
        self._pending.append(norms_P)
        if len(self._pending) == BLOCK:
            self._fetch()

    @property
    def steps(self) -> tuple[int, ...]:
        """The measured steps, from 0."""
        return tuple(self._steps)

    @property
    def values(self) -> dict[str, Floats]:
        """The measured values by name (S)."""
        self._fetch()
        norm_SP = np.concatenate(self._there or [np.zeros((0, len(self._names)))])
        told = {ALL: np.ones(len(self._names), bool), WEIGHTS: self._is_weight_P}
        told[BIASES] = ~self._is_weight_P
        totals = {n: np.linalg.norm(norm_SP[:, of], axis=1) for n, of in told.items() if of.any()}
        return totals | {name: norm_SP[:, p] for p, name in enumerate(self._names)}

    def readings(self) -> list[Reading]:
        """The last values; empty where there are none."""
        if not self._steps:
            return []
        return [Reading(self.name, layer, float(v[-1])) for layer, v in self.values.items()]

    def __str__(self) -> str:
        if not self._steps:
            return f"{self.name}: no step was measured"
        last = self.values[ALL][-1]
        return f"{self.name} {last:.4g} at step {self._steps[-1]} ({len(self._steps)} measured)"

    def _fetch(self) -> None:
        if self._pending:
            self._there.append(torch.stack(self._pending).double().cpu().numpy())
            self._pending.clear()
