"""Predictions: exact where theory is, true to the quadratic model, and none where none is due."""

from collections.abc import Callable
from functools import partial
from math import inf, nan, sqrt

import numpy as np
import pandas as pd
import pytest

from batchlab.analysis.intervals import Interval
from batchlab.analysis.learning_rate import sgd
from batchlab.analysis.noisy_quadratic import NoisyQuadratic
from batchlab.analysis.prediction import Anchored, Prediction, predict
from batchlab.analysis.steps import monotone
from batchlab.analysis.throughput import Throughput, measured
from batchlab.analysis.trade_off import fit
from batchlab.spec import UserError

SIZES = tuple(2.0**k for k in range(2, 15))
STEPS = Interval(10_000, 9_500, 10_500, 5)
SURE = Interval(800, 700, 900, 9)
OPEN = Interval(nan, 0, inf, 3)


MODEL = NoisyQuadratic()
EXACT = {size: MODEL.best(0.01, size) for size in SIZES}


def affine(floor: float, slope: float) -> Callable[[float], float]:
    return lambda b: floor + slope * b


def machine(seconds: Callable[[float], float], error: float = 0.0) -> Throughput:
    generator = np.random.default_rng(0)
    rows = [(b, seconds(b) * np.exp(error * generator.normal())) for b in SIZES for _ in range(3)]
    return measured(pd.DataFrame(rows, columns=["batch_size", "seconds"]))


def test_steps_samples_and_seconds_are_the_formula_s() -> None:
    told = predict(Anchored(SURE, 64, STEPS), machine(affine(1e-3, 2e-5)))
    for row in told.rows:
        steps = 10_000 * (1 + 800 / row.batch_size) / (1 + 800 / 64)
        assert row.steps.effect == pytest.approx(steps)
        assert row.samples.effect == pytest.approx(steps * row.batch_size)
        assert row.seconds.effect == pytest.approx(steps * (1e-3 + 2e-5 * row.batch_size))
        assert row.steps.low < steps < row.steps.high
    at_anchor = next(row for row in told.rows if row.batch_size == 64).steps
    assert (at_anchor.low, at_anchor.high) == pytest.approx((9_500, 10_500), rel=0.01)


def test_the_best_is_near_the_root_and_the_range_is_what_is_within_five_percent() -> None:
    """Seconds (1 + N/B)(a + b B) are least at B = sqrt(N a / b)."""
    told = predict(Anchored(SURE, 64, STEPS), machine(affine(1e-3, 2e-5)))
    assert told.time is not None
    assert told.time.best / sqrt(2) <= sqrt(800 * 50) <= told.time.best * sqrt(2)
    cost = {b: (1 + 800 / b) * (1 + b / 50) for b in SIZES}
    near = tuple(b for b in SIZES if cost[b] <= 1.05 * min(cost.values()))
    assert told.time.sizes == near
    assert (told.time.low, told.time.high) == (near[0], near[-1])
    assert told.samples is not None
    assert told.samples.best == 4  # fewest samples are always the smallest size's
    assert told.samples.sizes == tuple(b for b in SIZES if (b + 800) <= 1.05 * 804)


def test_the_same_seed_the_same_answer() -> None:
    source, timings = Anchored(SURE, 64, STEPS), machine(affine(1e-3, 2e-5), 0.05)
    assert predict(source, timings) == predict(source, timings)


def test_no_answer_where_it_hangs_on_an_undecided_noise_scale() -> None:
    told = predict(Anchored(OPEN, 64, STEPS), machine(affine(1e-3, 2e-5), 0.01))
    assert told.time is None
    assert "any from 4 to 16384" in told.time_reason
    half_open = Interval(800, 400, inf, 3)
    assert predict(Anchored(half_open, 64, STEPS), machine(affine(1e-3, 2e-5))).time is None


def test_no_answer_where_a_finite_interval_is_too_wide() -> None:
    wide = Interval(800, 50, 12_800, 9)
    assert predict(Anchored(wide, 64, STEPS), machine(affine(1e-3, 2e-5))).time is None
    by_factor = Anchored(SURE, 64, STEPS, factor=14)
    assert predict(by_factor, machine(affine(1e-3, 2e-5))).time is None


@pytest.mark.parametrize(
    ("seconds", "best"),
    [(lambda _: 1e-3, 16_384.0), (lambda b: 1e-5 * b, 4.0)],
    ids=["free samples", "no floor"],
)
def test_an_answer_where_every_noise_scale_gives_the_same(
    seconds: Callable[[float], float], best: float
) -> None:
    told = predict(Anchored(OPEN, 64, STEPS), machine(seconds, 0.002))
    assert told.time is not None
    assert told.time.sizes == (best,)
    assert "whatever the noise scale" in told.time_reason


def test_a_fitted_sweep_is_a_source_of_steps() -> None:
    rows = [
        (b, seed, 1000 * (1 + 800 / b) * (1 + 0.01 * (seed - 1)), "reached")
        for b in (16.0, 128.0, 1024.0)
        for seed in range(3)
    ]
    frame = pd.DataFrame(rows, columns=["batch_size", "seed", "steps", "outcome"])
    timings = machine(affine(1e-3, 2e-5))
    told, other = predict(fit(frame), timings), predict(Anchored(SURE, 64, STEPS), timings)
    assert told.time is not None
    assert other.time is not None
    assert told.time.sizes == other.time.sizes


def test_a_monotone_reading_is_a_source_where_the_hyperbola_misfits() -> None:
    """On the quadratic model, whose knee is sharper, from every other size."""
    rows = [(b, seed, EXACT[b].steps, "reached") for b in SIZES[::2] for seed in range(2)]
    frame = pd.DataFrame(rows, columns=["batch_size", "seed", "steps", "outcome"])
    seconds = affine(1e-3, 2.5e-7)
    cost = {b: o.steps * seconds(b) for b, o in EXACT.items()}
    told = predict(monotone(frame), machine(seconds)).time
    assert told is not None
    assert told.best == min(cost, key=lambda b: cost[b])
    with pytest.raises(UserError, match="no steps measured at 4"):
        predict(monotone(frame[frame["batch_size"] > 4]), machine(seconds))


def on_the_model(
    anchor: float, width: float, off: float, seconds: Callable[[float], float]
) -> tuple[Prediction, dict[float, float]]:
    """A prediction from one run's B_noise half way, `off` times it, and the exact seconds."""
    rate, steps = EXACT[anchor].rate, EXACT[anchor].steps
    noise = off * MODEL.noise_scale(MODEL.second_moments(anchor, rate, steps / 2)).noise
    source = Anchored(
        Interval(noise, noise / width, noise * width, 1), anchor, Interval(steps, steps, steps, 1)
    )
    return predict(source, machine(seconds)), {b: o.steps * seconds(b) for b, o in EXACT.items()}


@pytest.mark.parametrize("anchor", [16.0, 256.0, 4096.0])
@pytest.mark.parametrize("off", [1.0, 0.75, 1.33])
@pytest.mark.parametrize(
    "seconds",
    [affine(1e-3, 1.6e-5), affine(1e-3, 2e-6), lambda b: max(1e-3, b / 256e3), lambda _: 1e-3],
    ids=["a/b 64", "a/b 512", "roofline", "free"],
)
def test_the_quadratic_model_s_best_size_is_possible_and_the_answer_costs_little(
    anchor: float, off: float, seconds: Callable[[float], float]
) -> None:
    told, cost = on_the_model(anchor, 1.33, off, seconds)
    best = min(cost, key=lambda b: cost[b])
    assert told.time is not None
    assert best in told.time.possible
    assert cost[told.time.best] < 1.15 * cost[best]


def test_negative_control_a_noise_scale_ten_times_off() -> None:
    told, cost = on_the_model(16, 1.33, 10, affine(1e-3, 2e-6))
    assert told.time is not None
    assert cost[told.time.best] > 1.2 * min(cost.values())
    assert min(cost, key=lambda b: cost[b]) not in told.time.possible


def test_rates_and_sizes_between() -> None:
    rule = partial(sgd, 0.1, 64, noise=SURE)
    told = predict(
        Anchored(SURE, 64, STEPS), machine(affine(1e-3, 2e-5)), sizes=[64, 96], rule=rule
    )
    rates = [row.rate for row in told.rows]
    assert [row.timed for row in told.rows] == [True, False]
    assert rates[0] is not None
    assert rates[1] is not None
    assert (rates[0].effect, rates[1].effect) == pytest.approx((0.1, 0.1 * 13.5 / (1 + 800 / 96)))


def test_what_is_refused() -> None:
    timings = machine(affine(1e-3, 2e-5))
    with pytest.raises(UserError, match="no step timed at 32768"):
        predict(Anchored(SURE, 64, STEPS), timings, sizes=[64, 32_768])
    with pytest.raises(UserError, match="at least one"):
        predict(Anchored(SURE, 64, STEPS), timings, sizes=[])
    with pytest.raises(UserError, match="anchor"):
        Anchored(SURE, 0, STEPS)
    with pytest.raises(UserError, match="anchor"):
        Anchored(SURE, 64, Interval(nan, -inf, inf, 0))
    with pytest.raises(UserError, match="noise scale"):
        Anchored(Interval(800, 900, 700, 1), 64, STEPS)
    with pytest.raises(UserError, match="factor"):
        Anchored(SURE, 64, STEPS, factor=0.5)
