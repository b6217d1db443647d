"""Branches: ratios of samples, the B_crit behind them, and whether a prediction holds."""

from math import exp, inf, isnan, log

import numpy as np
import pytest

from batchlab.analysis.branches import MARGIN, agreement, compare, log_ratio, ratio
from batchlab.analysis.intervals import Interval
from batchlab.spec import UserError


def truth(critical: float, base: float, size: float) -> float:
    return (1 + size / critical) / (1 + base / critical)


def ratios(
    critical: float, base: float, sizes: list[float], noise: float, seeds: int = 4, at: int = 0
) -> dict[float, list[float]]:
    rng = np.random.default_rng(at)
    luck_S = noise * rng.standard_normal(seeds)
    return {
        b: (truth(critical, base, b) * np.exp(luck_S + noise * rng.standard_normal(seeds))).tolist()
        for b in sizes
    }


@pytest.mark.parametrize("slower", [0.4, 1.0, 2.5])
def test_ratio_of_one_course_at_another_pace(slower: float) -> None:
    marks = np.linspace(0, 1000, 201)
    course = np.exp(-marks / 300)
    own = np.exp(-marks / 300 / slower)
    assert ratio(marks, own, marks, course) == pytest.approx(slower, rel=2e-3)
    assert ratio(marks, course, marks, own) == pytest.approx(1 / slower, rel=2e-3)


def test_ratio_counts_samples_where_marks_differ() -> None:
    base = np.array([0.0, 10, 20, 30, 40])
    own = np.array([0.0, 16, 48])
    assert ratio(own, 4 - own / 12, base, 4 - base / 10) == pytest.approx(12 / 10)


def test_ratio_of_what_makes_no_progress() -> None:
    up, down = [1.0, 1.2, inf], [1.0, 0.9, 0.8]
    assert ratio([0, 1, 2], up, [0, 1, 2], down) == inf
    assert ratio([0, 1, 2], down, [0, 1, 2], up) == 0
    assert isnan(ratio([0, 1, 2], up, [0, 1, 2], up))
    assert ratio([0, 1, 2], [1.0, 0.5, inf], [0, 1, 2], down) == inf  # diverged after a good start


def test_levels_at_which_the_base_still_stands_at_its_start_are_none() -> None:
    marks = list(range(11))
    late = [1.0] * 9 + [0.98, 0.95]  # the base leaves its first loss after the eighth mark
    early = [1.0, 0.9, *np.linspace(0.88, 0.6, 9)]
    assert ratio(marks, early, marks, late) > 0.01
    assert ratio(marks, early, marks, late) < 0.1


def test_the_least_progress_is_a_level_too() -> None:
    barely = [1.0, 1.0, float(np.nextafter(1.0, 0))]
    seen = [0, 10**6, 10**6 + 10**4]  # so many that the place where it is reached rounds
    assert ratio(seen, barely, seen, [1.0, 1.0, 0.1]) == pytest.approx(1.01, rel=1e-3)


def test_seeds_that_were_cut_to_a_bound_tell_no_spread() -> None:
    spread = {16.0: [1.7, 2.0, 1.8, 2.1]}
    alone, beside = compare(8, spread), compare(8, spread | {64.0: [8.0] * 4})
    cut = beside.ratios[64.0]
    assert cut.effect == pytest.approx(8)
    assert (cut.low, cut.high) == (0, inf)
    assert agreement(beside, Interval(1, 0.95, 1.05, 10)).verdict == "inconclusive"
    assert beside.critical.effect < alone.critical.effect  # it has a say in where,
    assert compare(8, {64.0: [8.0] * 4}).critical.high == inf  # and none in how sure


@pytest.mark.parametrize("critical", [5.0, 60.0, 900.0])
def test_critical_size_is_found(critical: float) -> None:
    told = compare(8, ratios(critical, 8, [2.0, 32.0, 256.0], noise=1e-9))
    assert told.critical.effect == pytest.approx(critical, rel=0.03)
    assert told.critical.low < critical < told.critical.high
    assert abs(told.misfit) < 0.03


def test_intervals_cover() -> None:
    """Negative control: an interval shrunk to a third covers far too little."""
    covered, shrunk = 0, 0
    for at in range(200):
        told = compare(8, ratios(60, 8, [32.0, 128.0], noise=0.15, at=at)).critical
        covered += told.low <= 60 <= told.high
        middle = log(told.effect)
        low, high = (middle + (log(max(e, 1e-9)) - middle) / 3 for e in (told.low, told.high))
        shrunk += low <= log(60) <= high
    assert covered >= 0.9 * 200
    assert shrunk < 0.9 * 200


def test_sizes_that_cost_nothing_or_everything_leave_an_end_open() -> None:
    free = compare(8, {64.0: [1.0, 1.01, 0.99]}).critical
    assert free.high == inf
    assert free.low > 64
    useless = compare(8, {64.0: [8.1, 7.9, 8.0]}).critical
    assert useless.low == 0
    assert useless.high < 8


def test_a_size_that_lost_is_no_better_than_its_steps() -> None:
    told = compare(8, {64.0: [inf, inf, 5.0], 16.0: [2.0, 2.0, 1.9]})
    assert told.ratios[64.0].effect == 8
    assert told.critical.effect < 8


def test_one_seed_decides_nothing() -> None:
    told = compare(8, {64.0: [2.0]})
    assert (told.critical.low, told.critical.high) == (0, inf)


def test_no_progress_anywhere() -> None:
    with pytest.raises(UserError, match="at no batch size but the present one did the held-out"):
        compare(8, {8.0: [1.0, 1.0], 64.0: [float("nan"), 0.0]})


def test_agreement_disagreement_and_neither() -> None:
    told = compare(8, ratios(60, 8, [32.0, 128.0], noise=0.02))

    def verdict(noise: Interval) -> str:
        return agreement(told, noise).verdict

    assert verdict(Interval(60, 57, 63, 10)) == "supported"
    assert verdict(Interval(600, 570, 630, 10)) == "refuted"
    assert verdict(Interval(6, 5.7, 6.3, 10)) == "refuted"
    assert verdict(Interval(60, 10, 400, 10)) == "inconclusive"
    assert verdict(Interval(inf, 300, inf, 10)) == "refuted"
    noisy = compare(8, ratios(60, 8, [32.0, 128.0], noise=0.5))
    assert agreement(noisy, Interval(60, 57, 63, 10)).verdict == "inconclusive"


def test_agreement_names_the_deciding_size() -> None:
    told = compare(8, ratios(60, 8, [32.0, 128.0], noise=0.01))
    condition = agreement(told, Interval(1e4, 1e4, 1e4, 10))
    assert "batch size 128 over those at 8" in condition.says
    assert condition.interval.low > 1 + MARGIN
    assert condition.interval.effect == pytest.approx(
        exp(-float(log_ratio(1e4, 8, 128))) * told.ratios[128].effect
    )
