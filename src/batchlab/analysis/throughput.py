"""Seconds a step against the batch size: measured, and where larger batches stop paying.

A step has a floor (launches, the optimizer's update, communication) and a part that grows with
the batch, a and b B, which overlap wholly, in part or not at all:

    t(B) = (a^p + (b B)^p)^(1/p)    affine p = 1, smooth 1 < p < inf, roofline p = inf: max(a, b B)

The roofline is that of Williams, Waterman and Patterson (Communications of the ACM 52, 2009). The
curve says where the knee is. Times are never read off it: only from sizes tried, or marked as
between two of them.

Shapes: N measurements, J sizes, C values of a / b, K draws.
"""

from dataclasses import dataclass
from math import exp, inf, log, nan
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from batchlab.analysis.intervals import LEVEL, Interval, exponential
from batchlab.analysis.steps import Floats
from batchlab.spec import UserError

COLUMNS: tuple[str, ...] = ("batch_size", "seconds")
# Simplest first: of forms that predict the sizes left out equally well the first is chosen.
FORMS: dict[str, tuple[float, ...]] = {
    "affine": (1.0,),
    "roofline": (inf,),
    "smooth": (1.25, 1.5, 2.0, 3.0, 4.0, 6.0, 10.0),
}
_BEYOND = 1e3  # a / b this far from the sizes tried bends t by 1e-3 over them
_RATIOS = 801
_DRAWS = 400
_ENOUGH = 3  # sizes, for a curve
_EQUAL = 0.05  # of a form's error: better by less is not better


class Reading(NamedTuple):
    """Seconds a step; `measured` says whether at this size, or between two that were."""

    seconds: Interval
    measured: bool


@dataclass(frozen=True, slots=True)
class Curve:
    """A fitted t(B): `floor` a in seconds, `slope` b in seconds a sample, `power` p.

    `largest` is the largest deviation of a size's mean from it, measured over fitted less 1, at
    `size`; `errors` the root mean square log error at sizes left out, by form.
    """

    form: str
    floor: float
    slope: float
    power: float
    largest: float
    size: float
    errors: dict[str, float]


@dataclass(frozen=True, slots=True)
class Throughput:
    """Measured seconds a step, with the curve through them (`None` under three sizes)."""

    size_J: Floats
    log_seconds_J: Floats  # means of log seconds
    deviation_J: Floats  # standard deviation of log seconds; nan for a single measurement
    count_J: Floats
    curve: Curve | None

    def at(self, size: float) -> Reading:
        """Seconds a step: at a size tried, Student's t of its own log seconds.

        Between two, log-linear in log size, with the ends of their intervals. Raises `UserError`
        outside of the sizes tried.
        """
        first, last = self.size_J[0], self.size_J[-1]
        if not first <= size <= last:
            raise UserError(f"no step timed at {size:g}; sizes from {first:g} to {last:g} were")
        half_J = self._halves()
        x_J, x = np.log(self.size_J), log(size)
        measured = bool(np.any(self.size_J == size))
        near_J = self.size_J == size
        if not measured:
            k = int(np.searchsorted(self.size_J, size))
            near_J = np.isin(np.arange(len(x_J)), (k - 1, k))
        x_J, y_J, half_J = x_J[near_J], self.log_seconds_J[near_J], half_J[near_J]
        part = np.interp(x, x_J, np.arange(len(x_J)))
        weight_J = np.array([1.0]) if measured else np.array([1 - part, part])
        ends = (float(weight_J @ end_J) for end_J in (y_J, y_J - half_J, y_J + half_J))
        effect, low, high = map(exponential, ends)
        return Reading(Interval(effect, low, high, int(self.count_J[near_J].min())), measured)

    def centre(self, sizes: Floats) -> Floats:
        """Seconds (B) at sizes tried or between."""
        return np.array([self.at(size).seconds.effect for size in sizes.tolist()])

    def draw(self, sizes: Floats, draws: int, generator: np.random.Generator) -> Floats:
        """Seconds (K, B): each tried size's mean moves by Student's t; between as `at`.

        A single measurement's own error is not known, and is taken to be that of the others.
        """
        deviation_J = np.where(np.isfinite(self.deviation_J), self.deviation_J, self._pooled())
        scale_J = np.nan_to_num(deviation_J) / np.sqrt(self.count_J)
        freedom_J = np.maximum(self.count_J - 1, 1)
        moved_KJ = self.log_seconds_J + scale_J * generator.standard_t(
            freedom_J, (draws, len(scale_J))
        )
        self.centre(sizes)  # refuses sizes outside
        x_J, x_B = np.log(self.size_J), np.log(sizes)
        drawn_KB: Floats = np.exp(np.stack([np.interp(x_B, x_J, moved_J) for moved_J in moved_KJ]))
        return drawn_KB

    def knee(self, gain: float = 0.1) -> Interval:
        """The size from which a doubling gains less than `gain` more samples a second.

        On the fitted curve. The interval is of a bootstrap over the measurements at each size, of
        the chosen form. Where even the largest doubling tried gains as much, the knee is past
        half the largest size: effect and high are inf, low is that size. Where already the first
        does not, effect and low are 0. Raises `UserError` for a gain not between 0 and 1, where
        there is no curve, and where the curve misses a size's time by more than the gain asked for.
        """
        if self.curve is None:
            raise UserError(f"a knee needs {_ENOUGH} sizes, not {len(self.size_J)}")
        if not 0 < gain < 1:
            raise UserError(f"gain: between 0 and 1, not {gain:g}")
        miss, at = self.curve.largest, self.curve.size
        if abs(miss) > gain:
            raise UserError(
                f"no knee of {gain:.0%}: the time at batch size {at:g} is {miss:+.0%} off the curve"
            )
        generator = np.random.default_rng(0)
        y_KJ = np.concatenate(
            [self.log_seconds_J[None], np.log(self.draw(self.size_J, _DRAWS, generator))]
        )
        ratio_K, power_K = _ratios(self.size_J, y_KJ, self.count_J, FORMS[self.curve.form])
        knee_K = ratio_K * _bend(gain, power_K)
        low, high = np.quantile(knee_K[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
        first, last = self.size_J[0], self.size_J[-1] / 2
        effect = float(knee_K[0])
        n = int(self.count_J.sum())
        if effect > last:
            return Interval(inf, min(low, last), inf, n)
        return Interval(
            0.0 if effect < first else effect,
            0.0 if low < first else low,
            inf if high > last else max(high, first),
            n,
        )

    def _pooled(self) -> float:
        there = np.isfinite(self.deviation_J)
        return float(np.sqrt(np.mean(self.deviation_J[there] ** 2))) if there.any() else 0.0

    def _halves(self) -> Floats:
        """Half-intervals of the mean log seconds (J); infinite for a single measurement."""
        quantile_J = stats.t.ppf(0.5 + LEVEL / 2, np.maximum(self.count_J - 1, 1))
        half_J = quantile_J * self.deviation_J / np.sqrt(self.count_J)
        halves_J: Floats = np.where(np.isfinite(half_J), half_J, inf)
        return halves_J


def measured(frame: pd.DataFrame) -> Throughput:
    """From a tidy frame of `batch_size` and `seconds` (of one step), a row a repetition.

    The form of the curve is the one that best predicts sizes left out, each in turn but the ends;
    the simplest, where another is better by less than a twentieth. Raises `UserError` for a
    missing column, or a size or time that is not positive and finite.
    """
    missing = [name for name in COLUMNS if name not in frame.columns]
    if missing:
        raise UserError(f"timings: no column {missing[0]!r}; {', '.join(COLUMNS)} are needed")
    size_N, seconds_N = (frame[name].to_numpy(dtype=float) for name in COLUMNS)
    for name, value_N in zip(COLUMNS, (size_N, seconds_N), strict=True):
        if not (len(value_N) and np.all((value_N > 0) & (value_N < inf))):
            raise UserError(f"{name}: positive and finite numbers are needed")
    size_J, inverse_N, count_J = np.unique(size_N, return_inverse=True, return_counts=True)
    y_N = np.log(seconds_N)
    mean_J = np.bincount(inverse_N, y_N) / count_J
    square_J = np.bincount(inverse_N, (y_N - mean_J[inverse_N]) ** 2)
    with np.errstate(invalid="ignore", divide="ignore"):
        deviation_J = np.sqrt(square_J / (count_J - 1))
    weight_J = count_J.astype(float)
    curve = _curve(size_J, mean_J, weight_J) if len(size_J) >= _ENOUGH else None
    return Throughput(size_J, mean_J, deviation_J, weight_J, curve)


def _shape(size_J: Floats, ratio_C: Floats, power: float) -> Floats:
    """log t - log b (C, J) for a / b of `ratio_C`."""
    a, x = np.log(ratio_C)[:, None], np.log(size_J)
    shape_CJ: Floats
    shape_CJ = np.maximum(a, x) if power == inf else np.logaddexp(power * a, power * x) / power
    return shape_CJ


def _ratios(
    size_J: Floats, y_KJ: Floats, weight_J: Floats, powers: tuple[float, ...]
) -> tuple[Floats, Floats]:
    """The a / b and p of least weighted squares (K) for each row of log seconds."""
    low, high = size_J[0] / _BEYOND, size_J[-1] * _BEYOND
    ratio_C = np.geomspace(low, high, _RATIOS)
    share_J = weight_J / weight_J.sum()
    y_KJ = y_KJ - (y_KJ @ share_J)[:, None]
    squares, ratios, tried = [], [], []
    for power in powers:
        shape_CJ = _shape(size_J, ratio_C, power)
        shape_CJ = shape_CJ - (shape_CJ @ share_J)[:, None]
        square_KC = ((shape_CJ**2) @ share_J)[None] - 2 * (y_KJ * share_J) @ shape_CJ.T
        k_K = np.clip(square_KC.argmin(axis=1), 1, _RATIOS - 2)
        rows = np.arange(len(y_KJ))
        before, here, after = (square_KC[rows, k_K + d] for d in (-1, 0, 1))
        # The parabola through the least point and its neighbours finds a / b between them.
        bent_K = np.maximum(before - 2 * here + after, 1e-300)
        shift_K = np.clip((before - after) / (2 * bent_K), -1, 1)
        squares.append(here - (before - after) ** 2 / (8 * bent_K))
        ratios.append(np.exp(np.log(ratio_C[k_K]) + shift_K * np.log(ratio_C[1] / ratio_C[0])))
        tried.append(np.full(len(y_KJ), power))
    best_K = np.array(squares).argmin(axis=0)
    rows = np.arange(len(y_KJ))
    return np.array(ratios)[best_K, rows], np.array(tried)[best_K, rows]


def _fitted(size_J: Floats, y_J: Floats, weight_J: Floats, form: str) -> tuple[float, float, float]:
    """a / b, p and log b."""
    ratio_K, power_K = _ratios(size_J, y_J[None], weight_J, FORMS[form])
    shape_J = _shape(size_J, ratio_K[:1], float(power_K[0]))[0]
    return float(ratio_K[0]), float(power_K[0]), float(np.average(y_J - shape_J, weights=weight_J))


def _curve(size_J: Floats, y_J: Floats, weight_J: Floats) -> Curve:
    errors = {form: _left_out(size_J, y_J, weight_J, form) for form in FORMS}
    there = {form: error for form, error in errors.items() if not np.isnan(error)}
    least = min(there.values(), default=nan)
    allowed = (form for form in there if there[form] <= least * (1 + _EQUAL) + 1e-9)
    form = next(allowed, "affine")
    ratio, power, slope = _fitted(size_J, y_J, weight_J, form)
    deviation_J = np.expm1(y_J - slope - _shape(size_J, np.array([ratio]), power)[0])
    k = int(np.abs(deviation_J).argmax())
    floor = ratio * exp(slope)
    return Curve(form, floor, exp(slope), power, float(deviation_J[k]), float(size_J[k]), errors)


def _left_out(size_J: Floats, y_J: Floats, weight_J: Floats, form: str) -> float:
    """Root mean square log error at inner sizes left out; nan with too few sizes for the form."""
    needed = 3 if form == "smooth" else 2
    inner = range(1, len(size_J) - 1)
    if len(size_J) - 1 < needed:
        return nan
    errors = []
    for j in inner:
        kept = np.arange(len(size_J)) != j
        ratio, power, slope = _fitted(size_J[kept], y_J[kept], weight_J[kept], form)
        told = slope + _shape(size_J[[j]], np.array([ratio]), power)[0, 0]
        errors.append(told - y_J[j])
    return float(np.sqrt(np.mean(np.square(errors))))


def _bend(gain: float, power_K: Floats) -> Floats:
    """b B / a at which 2 t(B) / t(2 B) = 1 + gain."""
    r = 2 / (1 + gain)
    with np.errstate(over="ignore", invalid="ignore"):
        finite = np.where(np.isfinite(power_K), power_K, 1.0)
        bend_K = ((r**finite - 1) / (2**finite - r**finite)) ** (1 / finite)
    bends_K: Floats = np.where(np.isfinite(power_K), bend_K, r / 2)
    return bends_K
