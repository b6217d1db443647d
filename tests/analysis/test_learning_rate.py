"""Rates at other batch sizes: the limits of each rule, and the quadratic model's own best rates."""

from math import inf, log

import pytest

from batchlab.analysis.intervals import Interval
from batchlab.analysis.learning_rate import adam, momentum, sgd
from batchlab.analysis.noisy_quadratic import NoisyQuadratic
from batchlab.spec import UserError

NOISE = Interval(100, 50, 200, 9)


def test_sgd_is_linear_below_the_noise_scale_and_level_above() -> None:
    assert sgd(0.1, 1, 2, Interval(1e6, 1e5, 1e7, 9)).effect == pytest.approx(0.2, rel=1e-4)
    assert sgd(0.1, 1e6, 1e7, NOISE).effect == pytest.approx(0.1, rel=1e-3)
    assert sgd(0.1, 100, 1e9, NOISE).effect == pytest.approx(0.2)  # half the largest rate at N
    told = sgd(0.1, 32, 128, NOISE)
    assert told.low < told.effect < told.high
    back = sgd(told.effect, 128, 32, NOISE)
    assert back.effect == pytest.approx(0.1)
    assert back.low < back.high


def test_an_unknown_noise_scale_leaves_all_between_level_and_linear() -> None:
    told = sgd(0.1, 32, 128, Interval(100, 0, inf, 0))
    assert (told.low, told.high) == pytest.approx((0.1, 0.4))


def test_the_quadratic_model_s_best_rates_follow_the_rule_up_to_its_knee() -> None:
    model = NoisyQuadratic()
    small, large = model.best(0.01, 16), model.best(0.01, 256)
    noise = model.noise_scale(model.second_moments(16, small.rate, small.steps / 2)).noise
    told = sgd(small.rate, 16, 256, Interval(noise, noise, noise, 1)).effect
    assert told == pytest.approx(large.rate, rel=0.2)
    assert small.rate * 16 > 1.08 * large.rate  # the negative control: linear is a grid step off


def test_adam_keeps_the_half_life_in_samples() -> None:
    told = adam(1e-3, 0.999, 32, 128)
    assert told.rate == pytest.approx(2e-3)
    assert 128 * log(2) / -log(told.beta2) == pytest.approx(32 * log(2) / -log(0.999))


def test_momentum_keeps_batch_size_over_one_minus_it() -> None:
    assert momentum(0.9, 128, 640) == pytest.approx(0.98)  # Smith et al.: 0.9 and 0.98, 5 times
    assert momentum(0.9, 128, 12.8) == pytest.approx(0)
    with pytest.raises(UserError, match=r"the smallest is 12\.8"):
        momentum(0.9, 128, 12)


def test_what_is_refused() -> None:
    with pytest.raises(UserError, match="rate"):
        sgd(0, 1, 2, NOISE)
    with pytest.raises(UserError, match="other"):
        adam(0.1, 0.9, 1, -2)
    with pytest.raises(UserError, match="beta2"):
        adam(0.1, 1, 1, 2)
    with pytest.raises(UserError, match="momentum"):
        momentum(1, 1, 2)
