"""The noisy quadratic model: steps to a target at any batch size, without training anything.

Directions i = 1..D of curvature h_i = 1/i; a batch of B has the gradient Hx plus noise of
covariance H / B. From s_i = E x_i^2 = 1, SGD of a constant rate a does

    s <- (1 - a h)^2 s + a^2 h / B,    L = sum h s / 2,

so that s_t = r + (1 - a h)^(2t) (1 - r) with r = a / (B (2 - a h)): any step's loss is had without
the steps before it (Zhang et al., Which algorithmic choices matter at which batch sizes?, 2019).
Losses are over the minimum's own. Its noise scales are exact too (McCandlish et al., 2018).

Shapes: D directions, R rates.
"""

from dataclasses import dataclass
from functools import cached_property
from math import ceil, inf
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

# At rate 2 the first direction no longer contracts, so the grid ends just below: with 2 as its last
# value the next is 1.85, and the best at batch size 2^20 takes 7,204 steps instead of 6,722.
RATES: tuple[float, ...] = tuple(np.geomspace(1e-5, 1.99, 160).tolist())
_MOST = 2.0**40  # steps: a rate that takes more is taken not to arrive


class Optimum(NamedTuple):
    """The fewest steps to a target, and the constant rate that takes them."""

    steps: int
    rate: float


class NoiseScale(NamedTuple):
    """In samples: B_simple = tr S / |g|^2 and B_noise = tr(H S) / g'Hg, S the noise of a sample."""

    simple: float
    noise: float


@dataclass(frozen=True)
class NoisyQuadratic:
    """The model with `dimensions` directions."""

    dimensions: int = 10_000

    @cached_property
    def curvature_D(self) -> Floats:
        """h_i = 1/i, which is the noise's variance in direction i as well."""
        return 1.0 / np.arange(1, self.dimensions + 1)

    def second_moments(self, batch_size: float, rate: float, steps: float) -> Floats:
        """s (D) after `steps` at a rate between 0 and 2, 2 excluded; batch size inf: no noise."""
        h_D = self.curvature_D
        rest_D = rate / (batch_size * (2 - rate * h_D))
        with np.errstate(divide="ignore"):  # rate 1 takes the first direction to its rest at once
            log_D = np.log(np.abs(1 - rate * h_D))
        left_D = np.exp(2 * steps * log_D) if steps else np.ones_like(h_D)
        moments: Floats = rest_D + left_D * (1 - rest_D)
        return moments

    def loss(self, batch_size: float, rate: float, steps: float) -> float:
        """L after `steps`."""
        return float(self.curvature_D @ self.second_moments(batch_size, rate, steps)) / 2

    def steps_to(self, target: float, batch_size: float, rate: float, most: float = _MOST) -> float:
        """The first step with L <= `target`, inf where that takes more than `most`.

        By bisection: L falls at every step while r <= 1 in every direction. Where r > 1 the first
        direction alone keeps L at 1/2 or more. Raises `ValueError` for a target that is not
        between 0 and 1/2, or a rate not between 0 and 2.
        """
        if not 0 < target < 0.5:
            raise ValueError(f"a target between 0 and 1/2 is needed, not {target}")
        if not 0 < rate <= 2:
            raise ValueError(f"a rate between 0 and 2 is needed, not {rate}")
        if rate == 2 or rate / (batch_size * (2 - rate)) > 1:
            return inf
        low, high = 0.0, most
        if not self.loss(batch_size, rate, high) <= target:
            return inf
        while high - low > 0.5:
            middle = (low + high) / 2
            reached = self.loss(batch_size, rate, middle) <= target
            low, high = (low, middle) if reached else (middle, high)
        first = ceil(low)
        return float(first if self.loss(batch_size, rate, first) <= target else first + 1)

    def best(self, target: float, batch_size: float, rates: ArrayLike = RATES) -> Optimum:
        """The best of `rates` (R), none of which needs to be good. Raises where none arrives."""
        found = Optimum(0, 0.0)
        fewest = _MOST
        for rate in np.asarray(rates, dtype=float)[::-1].tolist():
            # Only a rate that beats the best so far is of interest: one evaluation says so.
            steps = self.steps_to(target, batch_size, rate, most=fewest)
            if steps < fewest:
                fewest, found = steps, Optimum(int(steps), rate)
        if not found.steps:
            raise ValueError(f"no rate of the grid reaches {target} at batch size {batch_size}")
        return found

    def noise_scale(self, moments_D: ArrayLike) -> NoiseScale:
        """At a point x with x_i^2 = `moments_D`: where E x_i^2 is given, the ratio of means."""
        h_D, s_D = self.curvature_D, np.asarray(moments_D, dtype=float)
        return NoiseScale(float(h_D.sum() / (h_D**2 @ s_D)), float((h_D**2).sum() / (h_D**3 @ s_D)))
