"""Steps, samples and seconds to the present target at other batch sizes, and which size to take.

Seconds are steps times seconds a step. Seconds a step are measured; steps are either of a sweep
(`trade_off.fit`), or of one run and a noise scale N that stands in for B_crit:

    S(B) / S(B0) = (1 + N/B) / (1 + N/B0)        (McCandlish et al., 2018)

which takes it that the rate at B0 is about the best there, that it is moved with B, and that steps
follow a hyperbola. Where a sweep does not (`trade_off.fit` says so), `steps.monotone` reads it.

Intervals go through by Monte Carlo. The answer is a range: sizes within a tolerance of the best.
Where inputs are so uncertain that no size is surely near the best, there is no answer, but the
reason; where the noise scale is undecided and the answer does not depend on it, there is one.

Shapes: V cases, B batch sizes, K draws.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from batchlab.analysis.intervals import LEVEL, Interval
from batchlab.analysis.steps import Floats
from batchlab.analysis.throughput import Throughput
from batchlab.spec import UserError

TOLERANCE = 0.05  # sizes this near to the best are as good
REGRET = 0.10  # an answer that may cost more than this over the best is none
DRAWS = 4000
CASES = 51  # of an undecided noise scale
_SEED = 0
_SURELY = float(stats.norm.ppf(0.5 + LEVEL / 2))
_BEYOND = 1e3  # a noise scale this far from all sizes is as good as 0 or infinite


class Steps(Protocol):
    """Steps to a target by batch size: `Anchored`, `trade_off.TradeOff` or `steps.Monotone`.

    There are V cases, one where the data decide. None of the cases is likelier than another.
    """

    def centres(self, sizes: ArrayLike) -> Floats:
        """The expected steps (V, B) in each case."""

    def draw(self, sizes: ArrayLike, draws: int, generator: np.random.Generator) -> Floats:
        """Steps (K, B); V equal parts of the K draws, in a row, are of the V cases."""


@dataclass(frozen=True, slots=True)
class Anchored:
    """Steps at other sizes from those at `batch_size`, by a noise scale in samples.

    `factor` is how far, either way, the noise scale may be from B_crit for reasons of its own, and
    widens its interval: that of an estimate covers its sampling error alone. McCandlish et al.
    (2018) find B_simple and B_crit alike in order of magnitude, not nearer, and not always. On the
    noisy quadratic model B_simple is 2.6 to 4 times the fitted B_crit, B_noise 0.5 to 0.9 times,
    and answers from B_simple are often wrong without a factor (benchmarks/noisy_quadratic.py).

    Where the target's steps are not known, steps of 1 give ratios to the present run's.
    Raises `UserError` where a size or the steps are not positive, the noise scale's interval has
    its ends in the wrong order, or the factor is under 1.
    """

    noise: Interval
    batch_size: float
    steps: Interval
    factor: float = 1.0

    def __post_init__(self) -> None:
        s, n = self.steps, self.noise
        if not (0 < self.batch_size < inf and 0 < s.low <= s.effect <= s.high < inf):
            raise UserError(
                "anchor: the present run's batch size and steps must be positive and finite,"
                f" not {self.batch_size:g} and {s}"
            )
        if not n.low <= n.high:
            raise UserError(f"noise scale: an interval from low to high is needed, not {n}")
        if not 1 <= self.factor < inf:
            raise UserError(f"factor: a number from 1 is needed, not {self.factor:g}")

    @property
    def critical(self) -> Interval:
        """What stands in for B_crit: the noise scale, with its interval widened."""
        n = self.noise
        return Interval(n.effect, n.low / self.factor, n.high * self.factor, n.n)

    @property
    def decided(self) -> bool:
        """Whether the noise scale has an estimate between two finite ends."""
        n = self.noise
        return 0 < n.low <= n.effect <= n.high < inf

    def centres(self, sizes: ArrayLike) -> Floats:
        """Steps (V, B), a case for each noise scale: the estimate, or all of the interval."""
        x_B = np.asarray(sizes, dtype=float)
        steps_VB: Floats = self.steps.effect * self._ratio(x_B, self._cases(x_B))
        return steps_VB

    def draw(self, sizes: ArrayLike, draws: int, generator: np.random.Generator) -> Floats:
        """Steps (K, B). Of a decided noise scale two half normals in its logarithm.

        Of an undecided one the V cases, each in K / V draws.
        """
        x_B = np.asarray(sizes, dtype=float)
        if self.decided:
            noise_K = _normal(self.critical, generator.standard_normal(draws))
        else:
            parts = np.array_split(np.zeros(draws), CASES)
            noise_K = np.repeat(self._cases(x_B), [len(part) for part in parts])
        steps_K = _normal(self.steps, generator.standard_normal(draws))
        return steps_K[:, None] * self._ratio(x_B, noise_K)

    def _cases(self, size_B: Floats) -> Floats:
        """Noise scales (V), evenly in their logarithm where undecided, ends included."""
        if self.decided:
            return np.array([self.noise.effect])
        least = min(float(size_B.min()), self.batch_size) / _BEYOND
        most = max(float(size_B.max()), self.batch_size) * _BEYOND
        low, high = (min(max(end, least), most) for end in (self.critical.low, self.critical.high))
        return np.geomspace(low, high, CASES)

    def _ratio(self, size_B: Floats, noise_K: Floats) -> Floats:
        noise_K1 = noise_K[:, None]
        ratio_KB: Floats = (1 + noise_K1 / size_B) / (1 + noise_K1 / self.batch_size)
        return ratio_KB


class Row(NamedTuple):
    """What a batch size costs. `seconds_over` is over the best size's seconds, in each draw.

    `timed`: whether a step was timed at this size, or at one below and one above.
    """

    batch_size: float
    steps: Interval
    samples: Interval
    seconds: Interval
    seconds_over: Interval
    samples_over: Interval
    timed: bool
    rate: Interval | None


class Choice(NamedTuple):
    """Sizes to take: all of `sizes` are within the tolerance of the best.

    `possible`: sizes that may be, for all the intervals say. `over` is what `best` costs over
    the best of each draw; its high end is what the answer may be wrong by, and `best` is the one
    of `sizes` where that is least.
    """

    low: float
    best: float
    high: float
    sizes: tuple[float, ...]
    possible: tuple[float, ...]
    over: Interval


@dataclass(frozen=True, slots=True)
class Prediction:
    """Costs by batch size, and the choice for least time and for fewest samples.

    A choice is `None` where the inputs do not decide; the reason of the same name says why.
    """

    rows: tuple[Row, ...]
    time: Choice | None
    time_reason: str
    samples: Choice | None
    samples_reason: str


def predict(
    steps: Steps,
    throughput: Throughput,
    sizes: Sequence[float] | None = None,
    rule: Callable[[float], Interval] | None = None,
    tolerance: float = TOLERANCE,
    regret: float = REGRET,
) -> Prediction:
    """Costs at `sizes` (those timed, if not given) and which to take.

    `rule` gives the learning rate at a size (`learning_rate.sgd`, say). A choice is every size
    whose expected cost is, in each case of `steps`, within `tolerance` of the least; there is none
    unless one of them costs, in 97.5% of the draws of each case, at most `regret` over the draw's
    least. Raises `UserError` for a size outside of those timed.
    """
    size_B = throughput.size_J if sizes is None else np.array(sorted({float(b) for b in sizes}))
    if not len(size_B):
        raise UserError("sizes: at least one batch size is needed")
    generator = np.random.default_rng(_SEED)
    second_B, second_KB = throughput.centre(size_B), throughput.draw(size_B, DRAWS, generator)
    step_VB, step_KB = steps.centres(size_B), steps.draw(size_B, DRAWS, generator)
    time_VB, time_KB = step_VB * second_B, step_KB * second_KB
    sample_VB, sample_KB = step_VB * size_B, step_KB * size_B
    timed = [throughput.at(size) for size in size_B.tolist()]
    n_B = [reading.seconds.n for reading in timed]
    columns = zip(
        size_B.tolist(),
        _intervals(step_VB, step_KB, n_B),
        _intervals(sample_VB, sample_KB, n_B),
        _intervals(time_VB, time_KB, n_B),
        _intervals(_over(time_VB), _over(time_KB), n_B),
        _intervals(_over(sample_VB), _over(sample_KB), n_B),
        (reading.measured for reading in timed),
        (rule(size) if rule else None for size in size_B.tolist()),
        strict=True,
    )
    time, why = _choose(size_B, time_VB, time_KB, tolerance, regret)
    samples, why_samples = _choose(size_B, sample_VB, sample_KB, tolerance, regret)
    return Prediction(tuple(Row(*column) for column in columns), time, why, samples, why_samples)


def _choose(
    size_B: Floats, cost_VB: Floats, cost_KB: Floats, tolerance: float, regret: float
) -> tuple[Choice | None, str]:
    over_KB, cases = _over(cost_KB), len(cost_VB)
    ends = np.stack([_ends(case_KB) for case_KB in np.array_split(over_KB, cases)])
    low_B, high_B = ends[:, 0].min(axis=0), ends[:, 1].max(axis=0)
    over_B = _over(cost_VB).max(axis=0)
    good_B = over_B <= 1 + tolerance
    sure_B = good_B & (high_B <= 1 + regret)
    if not sure_B.any():
        best_K = np.sort(size_B[over_KB.argmin(axis=1)])
        first, last = (best_K[round(p * (len(best_K) - 1))] for p in (0.025, 0.975))
        near = int(high_B.argmin())
        return None, (
            f"the best size may be any from {first:g} to {last:g}, and no size tried is sure to be"
            f" near it: {size_B[near]:g} may cost {high_B[near] - 1:.0%} more"
        )
    k = int(np.where(sure_B, high_B, inf).argmin())  # of a flat course the least is anywhere
    good, possible = size_B[good_B].tolist(), size_B[low_B <= 1 + tolerance].tolist()
    whole = "as predicted" if cases == 1 else "whatever the noise scale in its interval"
    reason = (
        f"{len(good)} of {len(size_B)} sizes are within {tolerance:.0%} of the best, {whole};"
        f" {size_B[k]:g} may cost {max(high_B[k] - 1, 0.0):.0%} more than it"
    )
    over = Interval(float(over_B[k]), float(low_B[k]), float(high_B[k]), len(cost_KB))
    return Choice(good[0], float(size_B[k]), good[-1], tuple(good), tuple(possible), over), reason


def _over(cost_KB: Floats) -> Floats:
    """Each cost over the least of its row."""
    return np.asarray(cost_KB / cost_KB.min(axis=1, keepdims=True))


def _ends(value_KB: Floats) -> Floats:
    return np.asarray(np.quantile(value_KB, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0))


def _intervals(centre_VB: Floats, value_KB: Floats, n_B: list[int]) -> list[Interval]:
    low_B, high_B = _ends(value_KB)
    centre_B = centre_VB[len(centre_VB) // 2]  # of the middle case
    columns = (centre_B.tolist(), low_B.tolist(), high_B.tolist(), n_B)
    return [Interval(e, min(lo, e), max(hi, e), n) for e, lo, hi, n in zip(*columns, strict=True)]


def _normal(interval: Interval, z_K: Floats) -> Floats:
    """Draws whose logarithms are half normals on either side of the effect's."""
    middle, low, high = np.log([interval.effect, interval.low, interval.high])
    scale_K = np.where(z_K > 0, high - middle, middle - low) / _SURELY
    drawn_K: Floats = np.exp(middle + scale_K * z_K)
    return drawn_K
