"""What short runs from one checkpoint say of the critical batch size, and of a prediction of it.

Branches at several batch sizes, each at its best rate, go over the same samples in the same order.
Where one at size B and one at the present size B0 reach the same held-out loss after E and E0
samples, the ratio is, by the trade-off of McCandlish et al. (2018) within the stretch,

    r(B) = E / E0 = (1 + B / B_crit) / (1 + B0 / B_crit)

whatever the loss's course: only that both reach the same level counts. The level is the higher of
the two last losses, so that one branch is read at its end and the other where it passed that level.
Branches that share a seed share their samples, so log r is a paired difference, and its mean over
seeds has Student's t interval. Rates are from a grid, so that the best of it is not the best there
is: `RATE_ERROR` of log r, for every size of its own, is added to the sampling error.

Shapes: M marks along a branch, B batch sizes, K places along training, G values of B_crit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import exp, inf, isfinite, log, nan, sqrt

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from batchlab.analysis.intervals import (
    LEVEL,
    Condition,
    Interval,
    deciding,
    exponential,
    mean_interval,
    together,
)
from batchlab.spec import UserError

Floats = NDArray[np.float64]

# A rate sqrt(2) off the best makes 0.83 to 0.91 of its progress on a quadratic; half as far, 0.97.
RATE_ERROR = 0.05
MARGIN = 0.25  # a prediction this near to the branches' samples agrees with them
LAST, LEVELS = 0.4, 5  # of the base's way: where losses are compared, and at how many levels
_BEYOND = 1e4
_GRID = 481


def ratio(
    samples_M: ArrayLike, loss_M: ArrayLike, base_samples_M: ArrayLike, base_loss_M: ArrayLike
) -> float:
    """r: samples to the same losses, over those of the base; the geometric mean over levels.

    The levels are those that the base passed in the last two fifths of its way to the lowest loss
    that both came to, as far as it had left its first loss by then: losses are noisy, and one level
    is read where each was lucky. Both begin with
    the loss at 0 samples, the same; between marks a loss is linear, and it counts as reached where
    it first was. inf where the branch has not come below the start and the base has, 0 the other
    way round, nan where neither has; one that diverged (its last loss is not finite) has not.
    """
    x, own = np.asarray(samples_M, float), _falling(loss_M)
    z, base = np.asarray(base_samples_M, float), _falling(base_loss_M)
    if own[-1] >= own[0]:
        return nan if base[-1] >= base[0] else inf
    if base[-1] >= base[0]:
        return 0.0
    lowest = max(float(own[-1]), float(base[-1]))
    way = _first(z, base, lowest) * np.linspace(1 - LAST, 1, LEVELS)
    logs = []
    for level in (*np.interp(way[:-1], z, base).tolist(), lowest):  # which rounding must not lift
        if level < base[0]:
            logs.append(log(_first(x, own, max(level, own[-1])) / _first(z, base, level)))
    return exp(sum(logs) / len(logs))


def _falling(loss_M: ArrayLike) -> Floats:
    """The lowest loss so far; the first one all along where the last is not finite."""
    told: Floats = np.asarray(loss_M, float)
    if not np.isfinite(told[-1]):
        return np.full_like(told, told[0])
    lowest: Floats = np.minimum.accumulate(told)
    return lowest


def _first(samples_M: Floats, falling_M: Floats, level: float) -> float:
    """Samples at which a falling loss first is at `level`."""
    k = int(np.argmax(falling_M <= level))
    before, after = falling_M[k - 1], falling_M[k]
    part = (before - level) / (before - after)
    return float(samples_M[k - 1] + part * (samples_M[k] - samples_M[k - 1]))


@dataclass(frozen=True, slots=True)
class Comparison:
    """Samples to the same loss at the sizes tried over those at `base`, and the B_crit they fit.

    `ratios` by batch size, without `base`; n counts seeds. `critical` is in samples; its ends are
    0 and inf where the sizes do not decide them. `misfit`: largest of measured over fitted less 1.
    """

    base: float
    ratios: dict[float, Interval]
    critical: Interval
    misfit: float


def compare(base: float, ratios: Mapping[float, Sequence[float]]) -> Comparison:
    """From r by batch size, a value a seed; ratios of nan, 0 and inf are left out, and n says so.

    B_crit is that of least squares in log r, each size weighted by its own variance; the interval
    is of the profile, at Student's t of the seeds, widened where the sizes' scatter about the curve
    is larger than their errors say. A size that lost in most seeds (inf) counts as a ratio no less
    than B over `base`, which is where steps stop getting fewer. Seeds that all say the same were
    cut to a bound: they have a say in where B_crit is, and none in how sure that is. Raises
    `UserError` where no size has a ratio.
    """
    means = {b: _mean(b / base, values) for b, values in sorted(ratios.items()) if b != base}
    told = {b: r for b, r in means.items() if r is not None}
    if not told:
        raise UserError(
            "branches: at no batch size but the present one did the held-out loss fall; "
            "a larger budget makes them longer"
        )
    log_B = np.log([r.effect for r in told.values()])
    half_B = np.array([log(r.high / r.effect) if r.high < inf else inf for r in told.values()])
    n_B = np.array([r.n for r in told.values()])
    size_B = np.array(list(told))
    known_B = np.isfinite(half_B)
    freedom = int((n_B - 1)[known_B].sum())
    if known_B.any():
        # Few seeds make a poor variance: sizes share it.
        quantile_B = stats.t.ppf(0.5 + LEVEL / 2, np.maximum(n_B - 1, 1))
        square_B = (half_B / quantile_B)[known_B] ** 2 * n_B[known_B]
        shared = float(np.average(square_B, weights=n_B[known_B] - 1))
        allowed = float(stats.t.ppf(0.5 + LEVEL / 2, freedom)) ** 2
    else:
        shared, allowed = 0.0, inf
    variance_B = shared / n_B + RATE_ERROR**2
    critical, misfit = _profile(base, size_B, log_B, variance_B, allowed)
    n = int(n_B.min())
    return Comparison(base, told, Interval(critical.effect, critical.low, critical.high, n), misfit)


def _profile(
    base: float, size_B: Floats, log_B: Floats, variance_B: Floats, allowed: float
) -> tuple[Interval, float]:
    """B_crit of least squares with its interval, and the largest misfit."""
    low, high = min(size_B.min(), base) / _BEYOND, max(size_B.max(), base) * _BEYOND
    critical_G = np.geomspace(low, high, _GRID)
    off_GB = log_B - log_ratio(critical_G[:, None], base, size_B)
    square_G = (off_GB**2 / variance_B).sum(axis=1)
    k = int(square_G.argmin())
    spare = len(size_B) - 1
    excess = max(1.0, float(square_G[k]) / spare) if spare else 1.0
    inside = critical_G[square_G <= square_G[k] + allowed * excess]
    first = 0.0 if inside[0] == critical_G[0] else float(inside[0])
    last = inf if inside[-1] == critical_G[-1] else float(inside[-1])
    misfit = float(np.expm1(off_GB[k][np.abs(off_GB[k]).argmax()]))
    return Interval(float(critical_G[k]), first, last, 1), misfit


def log_ratio(critical: Floats | float, base: float, size: Floats | float) -> Floats:
    """log r of sizes over the base, by the trade-off; of an infinite B_crit 0."""
    told: Floats = np.log1p(np.divide(size, critical)) - np.log1p(np.divide(base, critical))
    return told


def _mean(most: float, values: Sequence[float]) -> Interval | None:
    """The geometric mean's interval, unbounded where there is no spread.

    Of a size that mostly lost no less than `most`.
    """
    v = np.asarray(values, float)
    there = v[np.isfinite(v) & (v > 0)]
    if np.isposinf(v).sum() * 2 > len(v):
        return Interval(max(most, 1.0), min(most, 1.0), inf, 1)
    if not len(there):
        return None
    told = mean_interval(np.log(there))
    if told.low == told.high:
        told = replace(told, low=-inf, high=inf)
    return told.map(exponential)


def agreement(comparison: Comparison, noise: Interval) -> Condition:
    """Whether a predicted noise scale gives the samples that were measured, within `MARGIN`.

    Of the tested sizes the condition that decides: each is that measured over predicted lies
    between 1 / (1 + MARGIN) and 1 + MARGIN; the interval joins both sides' errors. Its verdict is
    `supported` where all agree, `refuted` where one does not.
    """
    conditions = [
        Condition(
            f"samples at batch size {size:g} over those at {comparison.base:g}, measured over "
            f"predicted",
            _over(comparison.base, size, r, noise),
            1 / (1 + MARGIN),
            1 + MARGIN,
        )
        for size, r in comparison.ratios.items()
    ]
    farthest_first = sorted(conditions, key=lambda c: -abs(log(c.interval.effect)))
    return deciding(together(farthest_first))


def _over(base: float, size: float, measured: Interval, noise: Interval) -> Interval:
    """Measured over predicted ratio; errors in their logarithms join in quadrature."""

    def predicted(critical: float) -> float:
        if critical <= 0:
            return log(size / base)
        return float(log_ratio(critical, base, size)) if isfinite(critical) else 0.0

    middle, ends = predicted(noise.effect), sorted(map(predicted, (noise.low, noise.high)))
    off = log(measured.effect) - middle
    if measured.low <= 0 or measured.high == inf:
        return Interval(exp(off), 0.0, inf, measured.n)
    below = sqrt(log(measured.effect / measured.low) ** 2 + (ends[1] - middle) ** 2 + RATE_ERROR**2)
    above = sqrt(
        log(measured.high / measured.effect) ** 2 + (middle - ends[0]) ** 2 + RATE_ERROR**2
    )
    return Interval(exp(off), exp(off - below), exp(min(off + above, 700.0)), measured.n)
