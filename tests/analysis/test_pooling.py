"""One noise scale for a run: against the sum of its parts' steps, and where there are no bounds."""

from math import inf, nan

import pytest

from batchlab.analysis.intervals import Interval
from batchlab.analysis.pooling import pooled, scale, share
from batchlab.spec import UserError


def exactly(noise: float) -> Interval:
    return Interval(noise, noise, noise, 1)


@pytest.mark.parametrize("size", [1.0, 8.0, 64.0, 4096.0])
def test_the_pooled_scale_predicts_the_sum_of_the_windows_steps(size: float) -> None:
    noise, base = [3.0, 40.0, 700.0], 8.0
    summed = sum((1 + n / size) / (1 + n / base) for n in noise) / len(noise)
    told = pooled([exactly(n) for n in noise], base)
    assert (1 + told.effect / size) / (1 + told.effect / base) == pytest.approx(summed)
    mean = sum(noise) / len(noise)  # what must not be taken
    if size != base:
        assert (1 + mean / size) / (1 + mean / base) != pytest.approx(summed, rel=0.05)


def test_limits_are_the_harmonic_mean_and_the_mean() -> None:
    noise = [exactly(n) for n in (10.0, 1000.0)]
    assert pooled(noise, 1e-6).effect == pytest.approx(2 / (1 / 10 + 1 / 1000), rel=1e-4)
    assert pooled(noise, 1e9).effect == pytest.approx(505, rel=1e-4)


def test_errors_of_windows_average_out() -> None:
    one = Interval(50.0, 20.0, 140.0, 8)
    alone, many = pooled([one], 50), pooled([one] * 16, 50)
    assert (alone.low, alone.effect, alone.high) == pytest.approx((20, 50, 140))
    assert many.effect == pytest.approx(50)
    assert share(alone.low, 50) - 0.5 == pytest.approx(4 * (share(many.low, 50) - 0.5))


def test_a_window_without_bounds_is_a_share_of_none() -> None:
    told = pooled([exactly(8.0), Interval(inf, 100.0, inf, 4)], 8)
    assert told.effect == pytest.approx(scale((0.5 + 0) / 2, 8))
    assert told.low < told.effect
    assert told.high < inf  # the other window bounds it
    assert pooled([Interval(inf, 0.0, inf, 1)], 8).high == inf
    assert pooled([Interval(nan, 0.0, inf, 1)], 8).effect == pytest.approx(8)


def test_nothing_to_pool() -> None:
    with pytest.raises(UserError, match="noise scales: at least one"):
        pooled([], 8)
    with pytest.raises(UserError, match="batch_size: a positive number"):
        pooled([exactly(1)], 0)
