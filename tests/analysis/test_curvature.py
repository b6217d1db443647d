"""Both scales and rates from a series: arithmetic, refusals, and coverage of known truths.

Shapes: S draws, K chunks, n = K - 1 others, P parameters.
"""

from math import inf, isinf

import numpy as np
import pytest

from batchlab.analysis.curvature import curvature, joined
from batchlab.analysis.noise_scale import Undecided, estimate
from batchlab.record import CurvatureSeries
from batchlab.spec import UserError


def series(*rows: list[float]) -> CurvatureSeries:
    a_S, b_S, c_S, d_S = (np.array(row) for row in rows)
    return CurvatureSeries(a_S, b_S, c_S, d_S, np.full(len(a_S), 30.0))


def random_series(curved: float, sd: float, trace: float = 50.0) -> CurvatureSeries:
    g = np.random.default_rng(0)
    means = ((10, 1), (2, 0.1), (trace, 5), (curved, sd))
    return series(*(g.normal(m, s, 20).tolist() for m, s in means))


def test_ratios_of_means() -> None:
    told = curvature(series([8, 12.0], [1, 3.0], [30, 50.0], [3, 5.0]))
    assert told.simple.scale.effect == pytest.approx(5)
    assert told.noise.scale.effect == pytest.approx(10)
    assert told.rate().effect == pytest.approx(2 / 4)
    assert told.rate(10).effect == pytest.approx(2 / (4 + 40 / 10))
    assert told.rate(10).effect == pytest.approx(told.rate().effect / (1 + 10 / 10))


def test_b_noise_is_the_estimate_of_its_own_series() -> None:
    s = random_series(4, 1)
    told = curvature(s)
    assert told.noise == estimate(s.noise, 1)
    assert told.critical() == told.noise.scale
    assert told.simple == estimate(s.simple, 1)


def test_undecided_names_the_signal_and_keeps_the_estimate() -> None:
    told = curvature(random_series(1, 10))
    with pytest.raises(Undecided, match="20 steps do not tell G'HG from zero") as raised:
        told.critical()
    assert raised.value.estimate == told.noise
    assert isinf(told.noise.scale.high)
    # The rate at a small batch is decided all the same: noise is known.
    assert isinf(told.rate().high)
    assert told.rate(1).low < 2 / 51 < told.rate(1).high < 2 * told.rate(1).low


def test_negative_curvature_is_no_noise_scale() -> None:
    for s, what in ((random_series(-4, 1), "G'HG"), (random_series(4, 1, trace=-50), "the noise")):
        told = curvature(s)
        assert not told.noise.decided
        assert told.simple.decided
        with pytest.raises(Undecided, match=f"{what} is below zero") as raised:
            told.critical()
        assert "\n" not in str(raised.value)


def test_a_batch_size_is_positive() -> None:
    with pytest.raises(UserError, match="batch size: a positive number"):
        curvature(random_series(4, 1)).rate(0)
    assert curvature(random_series(4, 1)).rate(inf) == curvature(random_series(4, 1)).rate()


def test_checkpoints_are_summed_before_they_are_divided() -> None:
    first, second = series([8, 12.0], [1, 3.0], [30, 50.0], [3, 5.0]), series([4.0], [2], [9], [2])
    told = curvature(joined([first, second]))
    assert told.simple.scale.effect == pytest.approx((8 + 12 + 4) / (1 + 3 + 2))
    assert told.noise.scale.effect == pytest.approx((30 + 50 + 9) / (3 + 5 + 2))
    assert told.simple.scale.effect != pytest.approx((20 / 4 + 4 / 2) / 2)
    with pytest.raises(ValueError, match="at least one array"):
        joined([])
