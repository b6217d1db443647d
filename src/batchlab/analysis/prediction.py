"""Steps, samples and seconds to the present target at other batch sizes, and which size to take.

Seconds are steps times seconds a step. Seconds a step are measured; steps are either of a sweep
(`trade_off.fit`), or of one run and a noise scale N that stands in for B_crit:

    S(B) / S(B0) = (1 + N/B) / (1 + N/B0)        (McCandlish et al., 2018)

which takes it that the rate at B0 is about the best there, that it is moved with B, and that steps
follow a hyperbola. `steps.py` reads a sweep that does not.

Intervals go through by Monte Carlo. The answer is a range: sizes within a tolerance of the best.
Where inputs are so uncertain that no size is surely near the best, there is no answer, but the
reason; where the noise scale is undecided and the answer does not depend on it, there is one.

Shapes: B batch sizes, K draws.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf, log
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
_SEED = 0
_SURELY = float(stats.norm.ppf(0.5 + LEVEL / 2))
_BEYOND = 1e3  # a noise scale this far from all sizes is as good as 0 or infinite


class Steps(Protocol):
    """Steps to a target by batch size: `Anchored`, or a `trade_off.TradeOff`.

    `decided` says whether draws come as often as they are likely, or only span what is possible.
    """

    @property
    def decided(self) -> bool:
        """Whether `centre` means anything."""

    def centre(self, sizes: ArrayLike) -> Floats:
        """Steps (B)."""

    def draw(self, sizes: ArrayLike, draws: int, generator: np.random.Generator) -> Floats:
        """Steps (K, B)."""


@dataclass(frozen=True, slots=True)
class Anchored:
    """Steps at other sizes from those at `batch_size`, by a noise scale in samples.

    Where the target's steps are not known, steps of 1 give ratios to the present run's.
    Raises `UserError` where a size or the steps are not positive, or the noise scale's interval
    has its ends in the wrong order.
    """

    noise: Interval
    batch_size: float
    steps: Interval

    def __post_init__(self) -> None:
        s, n = self.steps, self.noise
        if not (0 < self.batch_size < inf and 0 < s.low <= s.effect <= s.high < inf):
            raise UserError(
                "anchor: the present run's batch size and steps must be positive and finite,"
                f" not {self.batch_size:g} and {s}"
            )
        if not n.low <= n.high:
            raise UserError(f"noise scale: an interval from low to high is needed, not {n}")

    @property
    def decided(self) -> bool:
        """Whether the noise scale has an estimate between two finite ends."""
        n = self.noise
        return 0 < n.low <= n.effect <= n.high < inf

    def centre(self, sizes: ArrayLike) -> Floats:
        """Steps (B) at the estimate; of an undecided scale, in the middle of the range drawn."""
        x_B = np.asarray(sizes, dtype=float)
        low, high = self._range(x_B)
        noise = self.noise.effect if self.decided else float(np.exp((low + high) / 2))
        return self.steps.effect * self._ratio(x_B, np.array([noise]))[0]

    def draw(self, sizes: ArrayLike, draws: int, generator: np.random.Generator) -> Floats:
        """Steps (K, B). Of a decided scale two half normals in its logarithm.

        Of an undecided one all of its interval, evenly in its logarithm, ends included: to find
        what holds throughout.
        """
        x_B = np.asarray(sizes, dtype=float)
        if self.decided:
            noise_K = _normal(self.noise, generator.standard_normal(draws))
        else:
            noise_K = np.exp(np.linspace(*self._range(x_B), draws))
        steps_K = _normal(self.steps, generator.standard_normal(draws))
        return steps_K[:, None] * self._ratio(x_B, noise_K)

    def _ratio(self, size_B: Floats, noise_K: Floats) -> Floats:
        noise_K1 = noise_K[:, None]
        ratio_KB: Floats = (1 + noise_K1 / size_B) / (1 + noise_K1 / self.batch_size)
        return ratio_KB

    def _range(self, size_B: Floats) -> tuple[float, float]:
        """Ends of the log noise scale."""
        least = min(float(size_B.min()), self.batch_size) / _BEYOND
        most = max(float(size_B.max()), self.batch_size) * _BEYOND
        low = self.noise.low if self.noise.low > least else least
        high = self.noise.high if self.noise.high < most else most
        return log(min(low, most)), log(max(high, least))


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
    the best of each draw; its high end is what the answer may be wrong by.
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

    `rule` gives the learning rate at a size (`learning_rate.sgd`, say). Of decided steps a choice
    is every size whose predicted cost is within `tolerance` of the least, if one of them costs no
    more than `regret` over the least in 97.5% of draws. Of undecided steps, every size within
    `tolerance` of the least in all draws. Raises `UserError` for a size outside of those timed.
    """
    size_B = throughput.size_J if sizes is None else np.array(sorted({float(b) for b in sizes}))
    if not len(size_B):
        raise UserError("sizes: at least one batch size is needed")
    generator = np.random.default_rng(_SEED)
    second_B, second_KB = throughput.centre(size_B), throughput.draw(size_B, DRAWS, generator)
    step_B, step_KB = steps.centre(size_B), steps.draw(size_B, DRAWS, generator)
    time_B, time_KB = step_B * second_B, step_KB * second_KB
    sample_B, sample_KB = step_B * size_B, step_KB * size_B
    timed = [throughput.at(size) for size in size_B.tolist()]
    n_B = [reading.seconds.n for reading in timed]
    columns = zip(
        size_B.tolist(),
        _intervals(step_B, step_KB, n_B),
        _intervals(sample_B, sample_KB, n_B),
        _intervals(time_B, time_KB, n_B),
        _intervals(time_B / time_B.min(), _over(time_KB), n_B),
        _intervals(sample_B / sample_B.min(), _over(sample_KB), n_B),
        (reading.measured for reading in timed),
        (rule(size) if rule else None for size in size_B.tolist()),
        strict=True,
    )
    time, why = _choose(size_B, time_B, time_KB, steps.decided, tolerance, regret)
    samples, why_samples = _choose(size_B, sample_B, sample_KB, steps.decided, tolerance, regret)
    return Prediction(tuple(Row(*column) for column in columns), time, why, samples, why_samples)


def _choose(
    size_B: Floats,
    cost_B: Floats,
    cost_KB: Floats,
    decided: bool,
    tolerance: float,
    regret: float,
) -> tuple[Choice | None, str]:
    over_KB = _over(cost_KB)
    low_B, high_B = _ends(over_KB)
    if decided:
        over_B = cost_B / cost_B.min()
        good_B, allowed = over_B <= 1 + tolerance, regret
        sure_B = good_B & (high_B <= 1 + regret)
    else:
        low_B, high_B = over_KB.min(axis=0), over_KB.max(axis=0)
        over_B, allowed = high_B, tolerance
        good_B = sure_B = high_B <= 1 + tolerance
    if not sure_B.any():
        best_K = np.sort(size_B[over_KB.argmin(axis=1)])
        first, last = (best_K[int(p * (len(best_K) - 1))] for p in (0.025, 0.975))
        near = int(high_B.argmin())
        return None, (
            f"the best size may be any from {first:g} to {last:g}, and none of those tried is sure"
            f" to be within {allowed:.0%} of it: the nearest, {size_B[near]:g}, may cost"
            f" {high_B[near] - 1:.0%} more"
        )
    k = int(np.where(good_B, over_B, inf).argmin())
    good, possible = size_B[good_B].tolist(), size_B[low_B <= 1 + tolerance].tolist()
    whole = "for every noise scale in the interval" if not decided else "as predicted"
    reason = (
        f"{len(good)} of {len(size_B)} sizes are within {tolerance:.0%} of the best {whole};"
        f" {size_B[k]:g} may cost {max(high_B[k] - 1, 0.0):.0%} more than the best"
    )
    over = Interval(float(over_B[k]), float(low_B[k]), float(high_B[k]), len(cost_KB))
    return Choice(good[0], float(size_B[k]), good[-1], tuple(good), tuple(possible), over), reason


def _over(cost_KB: Floats) -> Floats:
    return np.asarray(cost_KB / cost_KB.min(axis=1, keepdims=True))


def _ends(value_KB: Floats) -> Floats:
    return np.asarray(np.quantile(value_KB, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0))


def _intervals(centre_B: Floats, value_KB: Floats, n_B: list[int]) -> list[Interval]:
    low_B, high_B = _ends(value_KB)
    columns = (centre_B.tolist(), low_B.tolist(), high_B.tolist(), n_B)
    return [Interval(e, min(lo, e), max(hi, e), n) for e, lo, hi, n in zip(*columns, strict=True)]


def _normal(interval: Interval, z_K: Floats) -> Floats:
    """Draws whose logarithms are half normals on either side of the effect's."""
    middle, low, high = np.log([interval.effect, interval.low, interval.high])
    scale_K = np.where(z_K > 0, high - middle, middle - low) / _SURELY
    drawn_K: Floats = np.exp(middle + scale_K * z_K)
    return drawn_K
