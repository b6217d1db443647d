"""The hyperbola: recovered where it is true, reported as a misfit where it is not."""

from math import inf, log

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import curve_fit

from batchlab.analysis.noisy_quadratic import NoisyQuadratic
from batchlab.analysis.steps import Floats
from batchlab.analysis.trade_off import fit
from batchlab.spec import UserError
from tests.analysis.sweeps import CRITICAL, LEAST, SIZES, sweep


def exact(sharpness: float = 1.0) -> pd.DataFrame:
    return sweep(np.random.default_rng(0), error=0.0, sharpness=sharpness)


def test_an_exact_hyperbola_is_recovered() -> None:
    told = fit(exact())
    assert told.critical.effect == pytest.approx(CRITICAL, rel=1e-6)
    assert told.least_steps.effect == pytest.approx(LEAST, rel=1e-6)
    assert told.least_samples.effect == pytest.approx(LEAST * CRITICAL, rel=1e-6)
    assert told.critical.high / told.critical.low < 1.0001
    assert told.misfit.verdict == "fits"
    assert abs(told.misfit.largest) < 1e-6


def test_at_the_critical_size_twice_the_steps_and_twice_the_samples() -> None:
    told = fit(sweep(np.random.default_rng(3)))
    size = told.critical.effect
    assert told.steps(size).effect == pytest.approx(2 * told.least_steps.effect)
    assert told.samples(size).effect == pytest.approx(2 * told.least_samples.effect)
    for size in (3.0, 77.0, 5000.0):
        excess = (told.steps(size).effect / told.least_steps.effect - 1) * (
            told.samples(size).effect / told.least_samples.effect - 1
        )
        assert excess == pytest.approx(1)


def test_the_greatest_likelihood_is_least_squares_of_logs() -> None:
    frame = sweep(np.random.default_rng(4), error=0.2)
    told = fit(frame)
    x, y = frame["batch_size"].to_numpy(), np.log(frame["steps"].to_numpy())

    def logs(size: Floats, least: float, critical: float) -> Floats:
        return np.asarray(least + np.log1p(np.exp(critical) / size))

    (least, critical), covariance = curve_fit(logs, x, y, p0=(log(900), log(100)))
    assert np.log(told.critical.effect) == pytest.approx(critical, rel=1e-5)
    assert np.log(told.least_steps.effect) == pytest.approx(least, rel=1e-5)
    # Wald's interval is the profile's for a linear model, which this nearly is. 18 freedoms.
    assert np.log(told.least_samples.high / told.least_samples.low) == pytest.approx(
        2 * 2.1009 * (covariance.sum()) ** 0.5, rel=0.05
    )


@pytest.mark.parametrize("sharpness", [3.0, 0.4])
def test_what_is_no_hyperbola_is_reported(sharpness: float) -> None:
    told = fit(sweep(np.random.default_rng(5), error=0.03, sharpness=sharpness))
    assert told.misfit.verdict == "misfits"
    assert abs(told.misfit.largest) > 0.08
    assert "does not fit" in str(told.misfit)
    true = fit(sweep(np.random.default_rng(5), error=0.03))
    assert true.misfit.verdict == "fits"  # the negative control
    assert told.critical.high / told.critical.low > 2 * true.critical.high / true.critical.low


def test_lack_of_fit_errs_as_often_as_it_says() -> None:
    frames = (sweep(np.random.default_rng(seed)) for seed in range(200))
    wrong = sum(fit(frame).misfit.verdict == "misfits" for frame in frames)
    assert abs(wrong - 10) < 4 * (200 * 0.05 * 0.95) ** 0.5


def test_the_quadratic_model_has_a_sharper_knee_and_it_is_said_where() -> None:
    model, sizes = NoisyQuadratic(), [4, 16, 64, 256, 1024, 4096, 16384]
    steps = [model.best(0.01, size).steps for size in sizes]
    frame = pd.DataFrame({"batch_size": sizes, "seed": 0, "steps": steps, "outcome": "reached"})
    assert fit(frame).misfit.verdict == "untested"
    told = fit(frame, error=0.005)  # the grid of rates
    assert told.misfit.verdict == "misfits"
    assert told.misfit.size == 1024
    assert told.misfit.largest == pytest.approx(-0.125, abs=0.01)
    assert told.critical.low < 830 < told.critical.high


def test_sizes_on_one_side_leave_the_other_open() -> None:
    small = fit(sweep(np.random.default_rng(6), sizes=[1, 2, 4, 8]))
    assert (small.critical.high, small.least_steps.low) == (inf, 0)
    assert small.critical.low > 8
    assert small.least_samples.low < LEAST * CRITICAL < small.least_samples.high
    assert small.least_samples.high / small.least_samples.low < 2
    large = fit(sweep(np.random.default_rng(7), sizes=[2e4, 4e4, 8e4]))
    assert (large.critical.low, large.least_samples.low) == (0, 0)
    assert large.least_steps.low < LEAST < large.least_steps.high


def test_unreached_trials_are_censored_not_lost() -> None:
    """Without them, or with the budget for their steps, the small sizes look cheap."""
    wholes, parts, cuts = [], [], []
    for seed in range(16):
        frame = sweep(np.random.default_rng(seed), error=0.3, budget=13_500)
        told = fit(frame)
        wholes.append(log(told.critical.effect / CRITICAL))
        parts.append(log(fit(frame[frame["outcome"] == "reached"]).critical.effect / CRITICAL))
        cuts.append(log(fit(frame.assign(outcome="reached")).critical.effect / CRITICAL))
    assert told.unreached.keys() == {16.0}
    assert abs(np.mean(wholes)) < 3 * np.std(wholes) / 16**0.5
    for control in (parts, cuts):
        lower = np.array(control) - wholes
        assert lower.mean() < -3 * lower.std() / 16**0.5


def test_a_size_that_never_arrives_still_says_at_least() -> None:
    frame = sweep(np.random.default_rng(8), sizes=[16, 256, 1024], budget=6000)
    assert (frame["outcome"] == "unreached").sum() == 5
    told = fit(frame)
    assert told.critical.effect > 50
    assert told.misfit.size_J.tolist() == [256, 1024]
    assert told.misfit.verdict == "untested"


def test_diverged_trials_are_counted() -> None:
    frame = sweep(np.random.default_rng(9))
    lost = frame.assign(outcome="diverged").head(5)
    told = fit(pd.concat([frame.tail(15), lost]))
    assert told.diverged == {SIZES[0]: 5}
    assert told.critical == fit(frame.tail(15)).critical


def test_too_little() -> None:
    frame = exact()
    with pytest.raises(UserError, match="two batch sizes"):
        fit(frame[frame["batch_size"] == 16])
    with pytest.raises(UserError, match="error"):
        fit(frame, error=0.0)
    two = fit(frame.groupby("batch_size").head(1).iloc[[0, 2]])
    assert two.critical.effect == pytest.approx(CRITICAL, rel=1e-5)
    assert (two.critical.low, two.critical.high) == (0, inf)  # exact through two points


def test_draws_are_spread_as_the_interval() -> None:
    told = fit(sweep(np.random.default_rng(10), seeds=2))  # too few for the jackknife
    steps_KB = told.draw([16, 200], 20_000, np.random.default_rng(0))
    for column, size in enumerate((16, 200)):
        low, high = np.quantile(steps_KB[:, column], [0.025, 0.975])
        assert np.log(high / low) == pytest.approx(
            np.log(told.steps(size).high / told.steps(size).low), rel=0.25
        )
    assert np.median(steps_KB, axis=0) == pytest.approx(told.centres([16, 200])[0], rel=0.02)
