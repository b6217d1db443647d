"""From noise scale, throughput and branches to the answer, or that there is none.

Without branches the answer is a prediction from the noise scale, which may be off B_crit by
`FACTOR` either way: only what holds all over that is told. With branches steps are predicted from
their own B_crit and, unless they disagree, from that noise scale too, each by how sure it is; where
this does not decide and they agree, from the noise scale within their margin.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import exp, inf, log
from typing import Literal

import numpy as np

from batchlab.analysis.branches import MARGIN, Comparison, agreement
from batchlab.analysis.intervals import LEVEL, Condition, Interval
from batchlab.analysis.prediction import DRAWS, REGRET, Anchored, Choice, Prediction, predict
from batchlab.analysis.throughput import Throughput

Source = Literal["noise scale", "branches", "branches and noise scale"]
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
    source: Source
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
    critical, by = joined(comparison, noise)
    tried = [batch_size, *comparison.ratios]
    near = [b for b in told if min(tried) / REACH <= b <= max(tried) * REACH]
    branched = Anchored(critical, batch_size, steps)
    answer = _of(branched, throughput, near, by, tested, condition, rule)
    if answer.choice is None and tested == "agreed":
        narrow = Anchored(noise, batch_size, steps, 1 + MARGIN)
        other = _of(narrow, throughput, near, "noise scale", tested, condition, rule)
        return other if other.choice else answer
    return answer


def _finer(sizes: list[float]) -> list[float]:
    """With 3/2 of every even size whose double was timed too; seconds there are between both."""
    between = [1.5 * b for b in sizes if 2 * b in sizes and b % 2 == 0]
    return sorted({*sizes, *between})


def joined(comparison: Comparison, noise: Interval) -> tuple[Interval, Source]:
    """B_crit by the branches, and by an untested noise scale too unless they disagree with it.

    Both have half normals of the logarithm on either side of their effect, as in `Anchored`. The
    effect is the mean of both by the precisions of the sides that face each other, and each side
    has the sum of both precisions there. Where either is open, the branches' alone, closed.
    """
    own = comparison.critical
    prior = Interval(noise.effect, noise.low / FACTOR, noise.high * FACTOR, noise.n)
    if agreement(comparison, noise).verdict == "refuted" or not (_decided(own) and _decided(prior)):
        return _closed(own, noise), "branches"
    below, above = sorted((own, prior), key=lambda interval: interval.effect)
    down, up = _half(above)[0] ** -2, _half(below)[1] ** -2
    effect = exp((log(above.effect) * down + log(below.effect) * up) / (down + up))
    halves = zip(_half(own), _half(prior), strict=True)
    least, most = (exp((a**-2 + b**-2) ** -0.5) for a, b in halves)
    return Interval(effect, effect / least, effect * most, own.n), "branches and noise scale"


def _decided(interval: Interval) -> bool:
    return 0 < interval.low < interval.effect < interval.high < inf


def _half(interval: Interval) -> tuple[float, float]:
    """How far the ends are from the effect, in the logarithm."""
    return log(interval.effect / interval.low), log(interval.high / interval.effect)


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
    source: Source,
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
