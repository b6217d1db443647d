"""The two statistics of a noise scale, step by step, gathered without waiting for the device.

Shapes: P parameters, S steps.
"""

from collections.abc import Sequence
from typing import Self

import numpy as np
from torch import Tensor

from batchlab.probes.blocks import Blocks
from batchlab.probes.parts import Parts, unbiased
from batchlab.record import ALL, NoiseSeries
from batchlab.spec import UserError


class NoiseStatistics:
    """Unbiased tau = tr(Sigma) and |G|^2 of every step, of each parameter and of `all` of them.

    A step whose gradient is not finite (one that a loss scaler skips) is left out and counted in
    `skipped`. `population` is N where batches are drawn without replacement from N examples.
    """

    def __init__(
        self, names: Sequence[str], population: int | None = None, *, total: bool = False
    ) -> None:
        """`names` are those of the parameters, in the order in which norms are given.

        With `total`, nothing but `all` of them is kept.
        """
        self._parameters = len(names)
        self._names = (ALL,) if total else tuple(names)
        self.population = population
        self._norms = Blocks(total=total)  # (2, P) a step
        self._sizes: list[tuple[int, float, float]] = []
        self._skipped = self._looked_at = 0  # the first so many steps are counted

    def update(self, step: Parts) -> None:
        """Take in one step's batch, without waiting for the device."""
        norms = step.norms
        shape = tuple(norms.shape) if isinstance(norms, Tensor) else (2, len(norms[0]))
        if shape != (2, self._parameters):
            raise UserError(
                f"norms of {self._parameters} parameters are needed, not of shape {shape}"
            )
        self._norms.add(norms)
        self._sizes.append((step.examples, step.small, step.big))

    def merge(self, other: Self) -> None:
        """Append the steps of another accumulator of the same parameters."""
        if other._names != self._names or other.population != self.population:
            raise UserError("only accumulators of the same parameters and population merge")
        skipped = self.skipped + other.skipped
        self._norms.append(other._norms)
        self._sizes += other._sizes
        self._skipped, self._looked_at = skipped, len(self._sizes)

    def compute(self, last: int | None = None) -> dict[str, NoiseSeries]:
        """The series of each parameter and of `all`, or of the last so many steps, those left out
        included; raises `ValueError` where nothing was seen."""
        norm_S2P = self._norms.array(last)
        if norm_S2P is None:
            raise ValueError("no step was seen")
        square_S2P = norm_S2P**2
        finite_S = np.isfinite(square_S2P).all(axis=(1, 2))
        square_S2P = square_S2P[finite_S]
        sizes_S3 = np.array(self._sizes[-len(norm_S2P) :], dtype=np.float64)[finite_S]
        n_S1, small_S1, big_S1 = sizes_S3.T[:, :, None]
        tau_SP, square_SP = unbiased(
            square_S2P[:, 0], square_S2P[:, 1], small_S1, big_S1, self.population
        )
        series = {
            name: NoiseSeries(tau_SP[:, p], square_SP[:, p], n_S1[:, 0])
            for p, name in enumerate(self._names)
        }
        return {ALL: NoiseSeries(tau_SP.sum(1), square_SP.sum(1), n_S1[:, 0])} | series

    @property
    def steps(self) -> int:
        """How many steps were seen, skipped ones included."""
        return len(self._sizes)

    @property
    def skipped(self) -> int:
        """How many steps had a gradient that was not finite."""
        norm_S2P = self._norms.array(len(self._sizes) - self._looked_at)
        if norm_S2P is not None:
            self._skipped += int((~np.isfinite(norm_S2P).all(axis=(1, 2))).sum())
            self._looked_at = len(self._sizes)
        return self._skipped
