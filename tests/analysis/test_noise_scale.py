"""The noise scale's interval against closed forms, and that it refuses what is not decided."""

from math import inf, isinf

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import signal, stats

from batchlab.analysis.noise_scale import (
    Undecided,
    autocorrelation_time,
    block_length,
    curve,
    estimate,
    noise_scale,
    noise_scales,
)
from batchlab.record import NoiseSeries


def series(
    tau: list[float], square: list[float], examples: list[float] | None = None
) -> NoiseSeries:
    return NoiseSeries(
        np.array(tau), np.array(square), np.array(examples or [64.0] * len(tau), dtype=float)
    )


def random_series(steps: int, square: float, sd: float, seed: int = 0) -> NoiseSeries:
    g = np.random.default_rng(seed)
    return NoiseSeries(g.normal(10, 1, steps), g.normal(square, sd, steps), np.full(steps, 64.0))


def test_means_are_divided_not_ratios_averaged() -> None:
    told = estimate(series([8, 12, 10, 10], [1, 2, 4, 5]), block=1)
    assert told.scale.effect == pytest.approx(10 / 3)
    assert (told.steps, told.block, told.scale.n) == (4, 1, 4)


def test_the_ends_are_where_fiellers_statistic_is_the_quantile() -> None:
    s = random_series(40, 1.0, 0.5)
    told = estimate(s, block=1)
    for end in (told.scale.low, told.scale.high):
        t = stats.ttest_1samp(s.trace_S - end * s.square_S, 0).statistic
        assert abs(t) == pytest.approx(stats.t.ppf(0.975, 39), rel=1e-10)
    assert told.scale.low < told.scale.effect < told.scale.high
    # Skewed as the ratio is.
    assert told.scale.high - told.scale.effect > told.scale.effect - told.scale.low
    for interval, values in ((told.trace, s.trace_S), (told.square, s.square_S)):
        low, high = stats.t.interval(0.95, 39, loc=values.mean(), scale=stats.sem(values))
        assert (interval.low, interval.high) == pytest.approx((low, high))


def test_a_denominator_without_error_gives_students_interval() -> None:
    tau = [8.0, 12, 10, 14]
    told = estimate(series(tau, [2.0] * 4), block=1)
    low, high = stats.t.interval(0.95, 3, loc=np.mean(tau) / 2, scale=stats.sem(tau) / 2)
    assert (told.scale.low, told.scale.high) == pytest.approx((low, high))


def test_blocks_of_equal_steps_are_steps_of_block_means() -> None:
    s = random_series(40, 1.0, 0.5)
    means = NoiseSeries(*(v.reshape(8, 5).mean(axis=1) for v in s))
    ours, theirs = estimate(s, block=5).scale, estimate(means, block=1).scale
    assert (ours.low, ours.high, ours.n) == pytest.approx((theirs.low, theirs.high, 8))


def test_steps_weigh_by_their_examples() -> None:
    told = estimate(series([10, 10, 40], [1, 1, 4], [64, 64, 16]), block=1)
    assert told.trace.effect == pytest.approx((640 + 640 + 640) / 144)
    assert told.scale.effect == pytest.approx(10)
    # A step of no weight to speak of changes nothing but the degrees of freedom.
    s = random_series(40, 1.0, 0.5)
    more = NoiseSeries(
        np.append(s.trace_S, 1e3), np.append(s.square_S, -9.0), np.append(s.examples_S, 1e-9)
    )
    assert estimate(more, block=1).scale.low == pytest.approx(
        estimate(s, block=1).scale.low, rel=0.01
    )


def test_undecided_is_raised_with_the_estimate() -> None:
    s = random_series(40, 0.1, 2.0)
    with pytest.raises(Undecided, match=r"40 steps do not tell \|G\|\^2 from zero") as raised:
        noise_scale(s)
    told = raised.value.estimate
    assert told == estimate(s)
    assert not told.decided
    assert isinf(told.scale.high)
    assert told.square.low < 0 < told.square.high
    assert "\n" not in str(raised.value)
    # Its lower end is Fieller's, too: nothing below is compatible with the data.
    t = stats.ttest_1samp(s.trace_S - estimate(s, block=1).scale.low * s.square_S, 0).statistic
    assert t == pytest.approx(stats.t.ppf(0.975, 39), rel=1e-10)
    assert noise_scale(random_series(40, 2.0, 2.0)).decided


def test_decided_exactly_where_the_square_is_significant() -> None:
    base = random_series(40, 0.0, 1.0)
    edge = stats.t.ppf(0.975, 39) * stats.sem(base.square_S) - base.square_S.mean()
    for shift, decided in ((edge - 1e-6, False), (edge + 1e-6, True)):
        moved = base._replace(square_S=base.square_S + shift)
        assert estimate(moved, block=1).decided is decided


def test_below_zero_and_no_noise() -> None:
    below = estimate(random_series(40, -3.0, 1.0))
    assert (below.scale.effect, below.scale.high, below.decided) == (inf, inf, False)
    assert 0 < below.scale.low < inf
    none = estimate(series([0.0] * 8, [1.0, 2] * 4))
    assert (none.scale.effect, none.scale.low, none.scale.high) == (0, 0, 0)
    nothing = estimate(series([0.0] * 8, [0.0] * 8))
    assert (nothing.scale.low, nothing.scale.high) == (0, inf)


def test_one_step_decides_nothing() -> None:
    with pytest.raises(Undecided):
        noise_scale(series([10.0], [1.0]))
    assert estimate(series([10.0], [1.0])).scale.effect == 10


def ar1(phi: float, steps: int, seed: int = 0) -> NDArray[np.float64]:
    noise = np.random.default_rng(seed).normal(size=steps)
    noise[0] /= np.sqrt(1 - phi * phi)
    values: NDArray[np.float64] = signal.lfilter([1.0], [1.0, -phi], noise)
    return values


@pytest.mark.parametrize("phi", [0.0, 0.5, 0.9])
def test_autocorrelation_time_of_a_known_process(phi: float) -> None:
    """(1 + phi) / (1 - phi) for an autoregression of first order."""
    assert autocorrelation_time(ar1(phi, 400_000)) == pytest.approx((1 + phi) / (1 - phi), rel=0.1)


def test_blocks_follow_the_correlation_within_limits() -> None:
    assert block_length(ar1(0.0, 1000)) == 100  # ten blocks
    assert 400 >= block_length(ar1(0.9, 2000)) >= 5 * 15
    assert block_length(ar1(0.999, 1000)) == 250  # four blocks
    assert block_length(np.ones(100)) == 10
    assert [block_length(np.arange(float(n))) for n in (1, 3, 8)] == [1, 1, 2]


def test_layers_and_curve() -> None:
    layers = noise_scales({"a": random_series(40, 2, 0.1), "b": random_series(40, 0.0, 9.0)})
    assert (layers["a"].decided, layers["b"].decided) == (True, False)
    drift = NoiseSeries(np.repeat([10.0, 20], 20), np.repeat([2.0, 1], 20), np.full(40, 64.0))
    first, second = curve(drift, 2)
    assert (first.first, first.last, second.first, second.last) == (0, 19, 20, 39)
    assert [w.estimate.scale.effect for w in (first, second)] == pytest.approx([5, 20])
    # Over all of it: the mean of 5 and 20 weighted by |G|^2, 2 and 1; the trend widens it.
    whole = estimate(drift).scale
    assert whole.effect == pytest.approx((5 * 2 + 20 * 1) / 3)
    assert whole.high - whole.low > 5
    assert first.estimate.scale.high == pytest.approx(5)
    uneven = curve(random_series(43, 2, 0.1), 4)
    assert [w.last - w.first + 1 for w in uneven] == [11, 11, 10, 11]
    assert [w.first for w in uneven[1:]] == [w.last + 1 for w in uneven[:-1]]


def test_what_is_not_a_series() -> None:
    for wrong, says in (
        (series([], []), "equal length"),
        (series([1.0], [1.0, 2]), "equal length"),
        (series([1.0, np.nan], [1.0, 2]), "finite"),
        (series([1.0, 2], [1.0, 2], [4, 0]), "an example"),
    ):
        with pytest.raises(ValueError, match=says):
            estimate(wrong)
    with pytest.raises(ValueError, match="3 windows need 6 steps, not 5"):
        curve(random_series(5, 1, 1), 3)
