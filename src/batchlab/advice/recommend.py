"""From noise scale, throughput and branches to the answer, or that there is none.

Without branches the answer is a prediction from the noise scale, which may be off B_crit by
`FACTOR` either way: only what holds all over that is told. With branches it is their own B_crit
that steps are predicted from; where they do not decide and agree with the noise scale, the noise
scale within their margin.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf
from typing import Literal

import numpy as np

from batchlab.analysis.branches import MARGIN, Comparison, agreement
from batchlab.analysis.intervals import LEVEL, Condition, Interval
from batchlab.analysis.prediction import DRAWS, REGRET, Anchored, Choice, Prediction, predict
from batchlab.analysis.throughput import Throughput

Tested = Literal["agreed", "disagreed", "undecided", "not tested"]
VERDICTS: dict[str, Tested] = {
    "supported": "agreed",
    "refuted": "disagreed",
    "inconclusive": "undecided",
}
FACTOR = 5.0  # of an untested noise scale over B_crit: the noisy quadratic model has up to 4
TESTED_REGRET = 0.15  # a tested answer that may cost more than this over the best is none
REACH = 4.0  # a tested answer goes no further than so many times beyond the sizes branched at


@dataclass(frozen=True, slots=True)
class Recommendation:
    """`source`: what stands for B_crit in `prediction`. `seconds_over` and `samples_over` are of
    the best size over the present one, at its best rate. `condition` is what the test rests on."""

    choice: Choice | None
    prediction: Prediction
    source: Literal["noise scale", "branches"]
    critical: Interval
    tested: Tested
    condition: Condition | None
    reason: str
    seconds_over: Interval | None
    samples_over: Interval | None

    @property
    def open(self) -> bool:
        """Whether the range ends where sizes can be judged no further: more may be as good."""
        return self.choice is not None and self.choice.high == self.prediction.rows[-1].batch_size


def recommend(
    noise: Interval,
    batch_size: int,
    steps: Interval,
    throughput: Throughput,
    comparison: Comparison | None = None,
    rule: Callable[[float], Interval] | None = None,
) -> Recommendation:
    """The answer for least time, from `steps` to the target at `batch_size`.

    `noise` is B_simple over the run (`pooling`), or anything else in its units that stands for
    B_crit, in samples. Sizes are those timed, and half way between doublings.
    """
    told = _finer(throughput.size_J.tolist())
    if comparison is None:
        source = Anchored(noise, batch_size, steps, FACTOR)
        return _of(source, throughput, told, "noise scale", "not tested", None, rule)
    condition = agreement(comparison, noise)
    tested = VERDICTS[condition.verdict]
    tried = [batch_size, *comparison.ratios]
    near = [b for b in told if min(tried) / REACH <= b <= max(tried) * REACH]
    branched = Anchored(_closed(comparison.critical, noise), batch_size, steps)
    answer = _of(branched, throughput, near, "branches", tested, condition, rule)
    if answer.choice is None and tested == "agreed":
        narrow = Anchored(noise, batch_size, steps, 1 + MARGIN)
        other = _of(narrow, throughput, near, "noise scale", tested, condition, rule)
        return other if other.choice else answer
    return answer


def _finer(sizes: list[float]) -> list[float]:
    """With 3/2 of every even size whose double was timed too; seconds there are between both."""
    between = [1.5 * b for b in sizes if 2 * b in sizes and b % 2 == 0]
    return sorted({*sizes, *between})


def _closed(critical: Interval, noise: Interval) -> Interval:
    """An end that the branches leave open is what an untested noise scale allows at the most.

    Not where the estimate is outside of that.
    """
    low = critical.low if critical.low > 0 else noise.low / FACTOR
    high = critical.high if critical.high < inf else noise.high * FACTOR
    if not low < critical.effect < high:
        return critical
    return Interval(critical.effect, low, high, critical.n)


def _of(
    steps: Anchored,
    throughput: Throughput,
    sizes: list[float],
    source: Literal["noise scale", "branches"],
    tested: Tested,
    condition: Condition | None,
    rule: Callable[[float], Interval] | None,
) -> Recommendation:
    regret = REGRET if tested == "not tested" else TESTED_REGRET
    told = predict(steps, throughput, sizes, rule, regret=regret)
    choice = told.time
    over = [None, None] if choice is None else _over(steps, throughput, choice.best)
    reason = told.time_reason
    answer = Recommendation(
        choice, told, source, steps.critical, tested, condition, reason, over[0], over[1]
    )
    if not answer.open:
        return answer
    last = told.rows[-1].batch_size
    why = f"sizes beyond {last:g} are too far from those tested to tell"
    if last == throughput.size_J[-1]:
        why = f"no larger size than {last:g} was timed"
    return replace(answer, reason=f"{reason}; {why}")


def _over(steps: Anchored, throughput: Throughput, size: float) -> list[Interval | None]:
    """Seconds and samples at `size` over those at the present one, whose errors are shared."""
    pair = np.array([size, steps.batch_size])
    generator = np.random.default_rng(0)
    step_VB, step_KB = steps.centres(pair), steps.draw(pair, DRAWS, generator)
    second_B, second_KB = throughput.centre(pair), throughput.draw(pair, DRAWS, generator)
    made: list[Interval | None] = []
    for centre_VB, draw_KB in (
        (step_VB * second_B, step_KB * second_KB),
        (step_VB * pair, step_KB * pair),
    ):
        centre_V = centre_VB[:, 0] / centre_VB[:, 1]
        low, high = np.quantile(
            draw_KB[:, 0] / draw_KB[:, 1], [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
        ).tolist()
        effect = float(centre_V[len(centre_V) // 2])
        made.append(Interval(effect, min(low, effect), max(high, effect), len(draw_KB)))
    return made
