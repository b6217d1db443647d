"""Steps as measured: between sizes, not beyond; what is no frame of trials is refused."""

from itertools import pairwise
from math import inf

import numpy as np
import pandas as pd
import pytest

from batchlab.analysis.steps import checked, groups, monotone
from batchlab.spec import UserError
from tests.analysis.sweeps import CRITICAL, LEAST, SIZES, sweep

EXACT = sweep(np.random.default_rng(0), sizes=[1, 4, 16, 64, 256, 1024], error=0.0)


def test_a_straight_line_in_log_log_is_read_exactly() -> None:
    sizes = [1.0, 8.0, 64.0]
    frame = pd.DataFrame(
        {"batch_size": sizes, "seed": 0, "steps": [4096.0 / b for b in sizes], "outcome": "reached"}
    )
    told = monotone(frame)
    assert told.at(8).steps.effect == pytest.approx(512)
    assert told.at(20).steps.effect == pytest.approx(4096 / 20)
    assert told.at(8).measured
    assert not told.at(20).measured
    assert told.at(8).steps.high == inf  # one trial a size says nothing of its error
    assert told.critical() == inf  # perfect scaling throughout


def test_between_sizes_near_the_truth_and_beyond_them_refused() -> None:
    told = monotone(EXACT)
    for size in (2, 8, 100, 600):
        assert told.at(size).steps.effect == pytest.approx(LEAST * (1 + CRITICAL / size), rel=0.05)
    with pytest.raises(UserError, match="sizes from 1 to 1024"):
        told.at(2048)
    with pytest.raises(UserError, match="sizes from 1 to 1024"):
        told.at(0.5)


def test_twenty_percent_overhead_is_a_fifth_of_the_critical_size() -> None:
    # samples (B + c) are 1.2 (1 + c) at B = 1.2 + 0.2 c
    assert monotone(EXACT).critical() == pytest.approx(1.2 + 0.2 * CRITICAL, rel=0.05)


def test_steps_never_rise() -> None:
    frame = pd.DataFrame(
        {
            "batch_size": [8, 8, 16, 16, 32, 32],
            "seed": [0, 1] * 3,
            "steps": [100.0, 104, 50, 52, 60, 62],  # rises from 16 to 32
            "outcome": "reached",
        }
    )
    told = monotone(frame)
    read = [told.at(size).steps for size in (8, 12, 16, 20, 32)]
    assert all(a.effect >= b.effect and a.high >= b.high for a, b in pairwise(read))
    assert told.at(16).steps.effect == pytest.approx((50 * 52 * 60 * 62) ** 0.25)


def test_the_interval_is_student_s_over_the_pooled_spread() -> None:
    frame = sweep(np.random.default_rng(1), seeds=4)
    logs = np.log(frame["steps"].to_numpy().reshape(len(SIZES), 4))
    half = 2.1788 * logs.std(axis=1, ddof=1).__pow__(2).mean() ** 0.5 / 2  # t of 12, root of 4
    told = monotone(frame).at(SIZES[1]).steps
    assert np.log(told.high / told.effect) == pytest.approx(half, rel=1e-4)
    assert told.n == 4


def test_draws_are_spread_as_the_interval() -> None:
    told = monotone(sweep(np.random.default_rng(2), seeds=20))
    drawn = told.draw([16.0, 64.0], 20_000, np.random.default_rng(0))
    for column, size in enumerate((16, 64)):
        ends = np.quantile(drawn[:, column], [0.025, 0.975])
        steps = told.at(size).steps
        assert ends == pytest.approx([steps.low, steps.high], rel=0.01)
    with pytest.raises(UserError, match="sizes from 16 to 1024"):
        told.draw([8.0], 1, np.random.default_rng(0))


def test_sizes_with_unreached_trials_are_left_out_and_told() -> None:
    frame = EXACT.copy()
    frame.loc[frame["batch_size"] == 16, "outcome"] = ["unreached"] + ["reached"] * 4
    assert monotone(frame).left_out == (16,)
    assert 16 not in groups(checked(frame)).size_J


def test_what_is_refused() -> None:
    with pytest.raises(UserError, match="no column 'outcome'"):
        checked(EXACT.drop(columns="outcome"))
    with pytest.raises(UserError, match=r"outcome: one of .* not 'lost'"):
        checked(EXACT.assign(outcome="lost"))
    with pytest.raises(UserError, match="batch_size"):
        checked(EXACT.assign(batch_size=0))
    with pytest.raises(UserError, match="steps"):
        checked(EXACT.assign(steps=np.nan))
    with pytest.raises(UserError, match="two sizes"):
        monotone(EXACT[EXACT["batch_size"] == 4])
    lost = EXACT.assign(outcome="diverged", steps=np.nan)
    assert checked(lost).diverged == dict.fromkeys((1, 4, 16, 64, 256, 1024), 5)
