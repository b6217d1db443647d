"""Intervals and verdicts."""

from math import inf, isinf, isnan, nan

import numpy as np
import pytest
from scipy import stats

from batchlab.analysis.intervals import (
    Condition,
    Interval,
    deciding,
    mean_interval,
    mean_intervals,
    together,
)


def test_students_t() -> None:
    values = [1.0, 2.0, 4.0, 7.0]
    i = mean_interval(values)
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert (i.effect, i.n) == (3.5, 4)
    assert (i.low, i.high) == pytest.approx((low, high))


def test_what_is_not_finite_is_left_out() -> None:
    assert mean_interval([1.0, nan, 3.0]) == mean_interval([1.0, 3.0])
    one = mean_interval([1.0, nan])
    assert (one.effect, one.n) == (1, 1)
    assert isinf(one.low)
    assert isinf(one.high)
    none = mean_interval([nan])
    assert isnan(none.effect)
    assert none.n == 0


@pytest.mark.parametrize(
    ("low", "high", "n", "verdict"),
    [
        (0.1, 0.3, 5, "supported"),
        (-0.3, -0.1, 5, "refuted"),
        (-0.1, 0.3, 5, "inconclusive"),
        (0.1, 0.3, 2, "inconclusive"),
        (0.0, 0.0, 5, "refuted"),
    ],
)
def test_above_zero(low: float, high: float, n: int, verdict: str) -> None:
    interval = Interval((low + high) / 2, low, high, n)
    assert Condition("x", interval, above=0).verdict == verdict
    mirrored = Interval(-interval.effect, -high, -low, n)
    assert Condition("x", mirrored, below=0).verdict == verdict


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.97, 1.02, "supported"),
        (0.9, 1.02, "inconclusive"),
        (1.06, 1.2, "refuted"),
        (0.5, 0.94, "refuted"),
        (0.5, 1.5, "inconclusive"),
    ],
)
def test_equivalence(low: float, high: float, verdict: str) -> None:
    interval = Interval((low + high) / 2, low, high, 5)
    assert Condition("x", interval, above=0.95, below=1.05).verdict == verdict


def test_nothing_measured_is_inconclusive() -> None:
    assert Condition("x", Interval(nan, -inf, inf, 0), above=0).verdict == "inconclusive"


def test_all_conditions_must_hold() -> None:
    yes = Condition("x", Interval(1, 0.5, 2, 5), above=0)
    maybe = Condition("x", Interval(1, -0.5, 2, 5), above=0)
    no = Condition("x", Interval(-1, -2, -0.5, 5), above=0)
    assert deciding([yes, yes]) is yes
    assert deciding([yes, maybe]) is maybe
    assert deciding([yes, maybe, no]) is no
    assert (yes.verdict, maybe.verdict, no.verdict) == ("supported", "inconclusive", "refuted")


def test_a_claim_of_many_conditions_is_not_refuted_by_one_chance() -> None:
    just = Condition("x", Interval(-1, -2.1, -0.1, 5), above=0)
    assert just.verdict == "refuted"
    assert [c.verdict for c in together([just] * 6)] == ["inconclusive"] * 6
    # At an error of 5% over k the quantile is that of 1 - 0.025 / k.
    wider = stats.t.ppf(1 - 0.025 / 6, 4) / stats.t.ppf(0.975, 4)
    for off, verdict in ((1.001, "refuted"), (0.999, "inconclusive")):
        far = Condition("x", Interval(-wider * off, -wider * off - 1, -wider * off + 1, 5), above=0)
        assert together([far] * 6)[0].verdict == verdict


def test_true_claims_of_six_conditions_are_seldom_refuted() -> None:
    generator = np.random.default_rng(3)
    verdicts = []
    for _ in range(2000):
        at_the_edge = [
            Condition("x", mean_interval(generator.normal(size=5)), above=0) for _ in range(6)
        ]
        verdicts.append(deciding(together(at_the_edge)).verdict)
    # One-sided, so 2.5%; each by itself at full level would refute 14%.
    assert verdicts.count("refuted") / len(verdicts) == pytest.approx(0.025, abs=0.01)


def test_a_diverged_run_supports_nothing() -> None:
    three = Condition("x", Interval(1, 0.5, 2, 3), above=0)
    assert [c.verdict for c in together([three], wanted=3)] == ["supported"]
    [of_five] = together([three], wanted=5)
    assert of_five.verdict == "inconclusive"
    assert "2 of 5 without a value" in str(of_five)
    [against] = together([Condition("x", Interval(-1, -2, -0.5, 3), above=0)], wanted=5)
    assert against.verdict == "refuted"


def test_columns_at_once() -> None:
    values = np.random.default_rng(0).normal(size=(5, 4))
    values[0, 1] = nan
    values[:, 2] = nan
    values[1:, 3] = nan
    told = mean_intervals(values)
    for column in (0, 1):
        i = mean_interval(values[:, column])
        assert told[:, column] == pytest.approx((i.effect, i.low, i.high, i.n))
    assert told[3].tolist() == [5, 4, 0, 1]
    assert np.isnan(told[:3, 2]).all()
    assert np.isnan(told[1:3, 3]).all()
