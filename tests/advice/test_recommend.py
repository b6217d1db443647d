"""The answer from made measurements: a range, none, and whom it follows where they disagree.

With steps 1 + N/B and seconds a + B, time is least at B = sqrt(N a).
"""

from math import exp, inf, log

import pytest

from batchlab.advice.recommend import REACH, joined, recommend
from batchlab.analysis.branches import compare
from batchlab.analysis.intervals import Interval
from tests.advice.made import SIZES, about, machine


def branches(critical: float, base: float = 16, spread: float = 0.01) -> dict[float, list[float]]:
    sizes = (base * 4, base * 16)
    return {
        b: [(1 + b / critical) / (1 + base / critical) * (1 + e) for e in (-spread, 0, spread)]
        for b in sizes
    }


def test_a_range_around_the_best() -> None:
    told = recommend(about(64), 16, about(100), machine(floor=64), compare(16, branches(64)))
    assert told.tested == "agreed"
    assert told.choice is not None
    assert told.choice.low <= 64 <= told.choice.high
    assert told.choice.best in (48, 64, 96)
    times = {b: (1 + 64 / b) * (64 + b) for b in SIZES}
    near = [b for b in SIZES if times[b] <= 1.05 * min(times.values())]
    assert [b for b in told.choice.sizes if b in SIZES] == near
    assert 48 in told.choice.sizes  # half way between two that were timed
    rows = {row.batch_size: row.timed for row in told.prediction.rows}
    assert rows[64]
    assert not rows[48]


def test_savings_are_those_of_the_formula() -> None:
    told = recommend(about(64), 16, about(100), machine(floor=64), compare(16, branches(64)))
    assert told.choice is not None
    assert told.seconds_over is not None
    assert told.samples_over is not None
    b = told.choice.best
    seconds = (1 + 64 / b) * (64 + b) / ((1 + 64 / 16) * (64 + 16))
    samples = (1 + 64 / b) * b / ((1 + 64 / 16) * 16)
    assert told.seconds_over.effect == pytest.approx(seconds, rel=0.05)
    assert told.samples_over.effect == pytest.approx(samples, rel=0.05)
    assert told.samples_over.low <= told.samples_over.effect <= told.samples_over.high


def test_untested_a_noise_scale_may_be_five_times_off() -> None:
    told = recommend(about(64), 16, about(100), machine(floor=64))
    assert told.tested == "not tested"
    assert told.choice is None
    assert "no size tried is sure to be near it" in told.reason


def test_untested_but_without_a_matter() -> None:
    """A step takes as long however large: whatever the noise scale, the largest is best."""
    told = recommend(about(5000), 16, about(100), machine(floor=64, per_sample=1e-6))
    assert told.choice is not None
    assert told.choice.high == SIZES[-1]
    assert "no larger size than 2048 was timed" in told.reason
    assert told.open


def test_where_they_disagree_the_branches_are_followed() -> None:
    told = recommend(about(4000, 1.2), 16, about(100), machine(floor=64), compare(16, branches(40)))
    assert told.tested == "disagreed"
    assert told.source == "branches"
    assert told.choice is not None
    assert told.choice.low <= (64 * 40) ** 0.5 <= told.choice.high
    assert not told.open
    alone = recommend(about(4000, 1.2), 16, about(100), machine(floor=64))
    assert alone.prediction.rows[0].steps.effect != told.prediction.rows[0].steps.effect


def test_where_they_do_not_both_have_a_say() -> None:
    """By how sure each is: the noise scale's interval is five times as wide either way."""
    comparison = compare(16, branches(60, spread=0.2))
    own, noise = comparison.critical, about(150, 1.2)
    told, source = joined(comparison, noise)
    assert source == "branches and noise scale"
    s, t = log(own.high / own.effect), log(5 * 1.2)
    middle = (log(own.effect) / s**2 + log(150) / t**2) / (1 / s**2 + 1 / t**2)
    assert told.effect == pytest.approx(exp(middle))
    assert own.effect < told.effect < 150
    assert told.high / told.effect == pytest.approx(exp((1 / s**2 + 1 / t**2) ** -0.5))
    assert told.effect / told.low < own.effect / own.low
    answer = recommend(noise, 16, about(100), machine(floor=64), comparison)
    assert (answer.critical, answer.source) == (told, source)


def test_sure_branches_have_all_of_it() -> None:
    comparison = compare(16, branches(60, spread=0.001))
    told, _ = joined(comparison, about(64))
    assert told.effect == pytest.approx(comparison.critical.effect, rel=0.01)


@pytest.mark.parametrize("noise", [Interval(60, 0.0, 90, 9), Interval(60, 40, inf, 9)])
def test_what_is_open_is_not_joined(noise: Interval) -> None:
    comparison = compare(16, branches(60, spread=0.2))
    assert joined(comparison, noise) == (comparison.critical, "branches")


def test_branches_that_decide_nothing_give_no_answer() -> None:
    loose = compare(16, branches(64, spread=0.9))
    told = recommend(about(64), 16, about(100), machine(floor=64), loose)
    assert told.tested == "undecided"
    assert told.choice is None


def test_a_tested_answer_stays_near_what_was_tested() -> None:
    free = compare(16, {64.0: [1.0, 1.01, 0.99], 256.0: [1.0, 1.01, 0.99]})
    told = recommend(
        Interval(1e5, 5e4, 2e5, 6), 16, about(100), machine(floor=64, per_sample=1e-3), free
    )
    sizes = [row.batch_size for row in told.prediction.rows]
    assert max(sizes) == 256 * REACH
    assert min(sizes) == 16 / REACH
    assert told.choice is not None
    assert "too far from those tested" in told.reason
    assert told.open


def test_an_open_end_is_closed_where_they_disagree_as_well() -> None:
    """Samples at 64 are 3.6 times those at 16, and may be 4 times, the most that they can be."""
    wide = compare(16, {64.0: [3.59, 3.6, 3.61]})
    assert wide.critical.low == 0
    noise = about(12, 1.02)
    told = recommend(noise, 16, about(100), machine(floor=64), wide)
    assert told.tested == "disagreed"
    assert told.critical.low == noise.low / 5
    far = recommend(about(200, 1.02), 16, about(100), machine(floor=64), wide)
    assert far.critical.low == 0
