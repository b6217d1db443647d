"""Confidence intervals over independent repetitions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import exp, inf, isfinite, nan, sqrt

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from batchlab.record import Verdict

LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    """An effect with its two-sided 95% interval over `n` repetitions."""

    effect: float
    low: float
    high: float
    n: int

    def map(self, f: Callable[[float], float]) -> "Interval":
        """The interval of an increasing function of the effect."""
        return Interval(f(self.effect), f(self.low), f(self.high), self.n)

    def __str__(self) -> str:
        return f"{self.effect:.3g} [{self.low:.3g}, {self.high:.3g}], n = {self.n}"


def exponential(x: float) -> float:
    """exp(x), or infinity where that is larger than any number: for `map` of a logarithm's."""
    return exp(x) if x < 700 else inf


def mean_interval(values: ArrayLike) -> Interval:
    """Student's t interval of the mean of i.i.d. values; paired where they are differences.

    Values that are not finite (a diverged run's) are left out, and n says so. With fewer than two
    left the interval is unbounded.
    """
    v = np.asarray(values, dtype=float).ravel()
    v = v[np.isfinite(v)]
    if len(v) == 0:
        return Interval(nan, -np.inf, np.inf, 0)
    mean = float(v.mean())
    if len(v) == 1:
        return Interval(mean, -np.inf, np.inf, 1)
    half = float(_quantile(len(v))) * float(v.std(ddof=1)) / sqrt(len(v))
    return Interval(mean, mean - half, mean + half, len(v))


def mean_intervals(values_NP: NDArray[np.float64]) -> NDArray[np.float64]:
    """`mean_interval` of each of P columns of N values: mean, low, high and n (4, P).

    Values that are not finite are left out; low and high are nan where fewer than two are left.
    """
    there = np.isfinite(values_NP)
    n = there.sum(axis=0)
    v = np.where(there, values_NP, 0.0)
    mean = v.sum(axis=0) / np.maximum(n, 1)
    square = (np.where(there, values_NP - mean, 0.0) ** 2).sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        half = _quantile(n) * np.sqrt(square / (n - 1) / n)
    half = np.where(n > 1, half, np.nan)
    return np.stack([np.where(n > 0, mean, np.nan), mean - half, mean + half, n])


def _quantile(n: int | NDArray[np.int64]) -> NDArray[np.float64]:
    """Half-width of the interval in standard errors."""
    return np.asarray(stats.t.ppf(0.5 + LEVEL / 2, np.maximum(n, 2) - 1))


@dataclass(frozen=True, slots=True)
class Condition:
    """One thing a claim needs: that an effect lies between `above` and `below`.

    `among`: how many things the claim needs, this one included. `wanted`: repetitions that should
    have given a value; where one did not (its run diverged), the rest can't support a claim.
    """

    says: str
    interval: Interval
    above: float = -np.inf
    below: float = np.inf
    among: int = 1
    wanted: int = 0

    @property
    def verdict(self) -> Verdict:
        """`supported` if the whole interval is inside, `refuted` if all of a wider one is outside.

        A claim falls with any of its conditions, so that each is refuted at an error of 5% over
        their number (Bonferroni): all together refute a true claim in 5% at the most. It stands
        with all of them, each at full level.
        """
        here = self.interval
        if here.n < MIN_REPETITIONS or not isfinite(here.effect):
            return "inconclusive"
        if self.above < here.low and here.high < self.below:
            return "supported" if here.n >= self.wanted else "inconclusive"
        errors = np.array([1 - LEVEL, (1 - LEVEL) / self.among])
        narrow, wide = stats.t.ppf(1 - errors / 2, here.n - 1)
        low = here.effect - (here.effect - here.low) * wide / narrow
        high = here.effect + (here.high - here.effect) * wide / narrow
        return "refuted" if high <= self.above or low >= self.below else "inconclusive"

    def __str__(self) -> str:
        lost = self.wanted - self.interval.n
        left_out = f", {lost} of {self.wanted} without a value" if lost > 0 else ""
        return f"{self.says}: {self.interval}{left_out} ({self.verdict})"


MIN_REPETITIONS = 3
# Of several conditions that must all hold, a refuted one decides, then an inconclusive one.
DECIDES: tuple[Verdict, ...] = ("refuted", "inconclusive", "supported")


def together(conditions: Sequence[Condition], wanted: int = 0) -> list[Condition]:
    """The conditions as all that one claim needs."""
    return [replace(c, among=len(conditions), wanted=wanted) for c in conditions]


def deciding(conditions: Sequence[Condition]) -> Condition:
    """The condition whose verdict is that of a claim which needs them all; the first of equals."""
    return min(conditions, key=lambda condition: DECIDES.index(condition.verdict))
