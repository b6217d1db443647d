"""The noisy quadratic model: its closed form against stepping it, and against published steps."""

from math import inf

import numpy as np
import pytest

from batchlab.analysis.noisy_quadratic import NoisyQuadratic

MODEL = NoisyQuadratic()
# Steps to L <= 0.01 at the best of 160 constant rates, computed by another program.
STEPS = {
    4: 1_507_535,
    16: 378_197,
    64: 95_989,
    256: 25_819,
    1024: 10_412,
    4096: 7_842,
    16384: 7_357,
    2**20: 6_725,
}


@pytest.mark.parametrize("size", STEPS)
def test_steps_at_the_best_rate(size: int) -> None:
    assert MODEL.best(0.01, size).steps == pytest.approx(STEPS[size], rel=0.005)


@pytest.mark.parametrize("rate", [0.01, 0.5, 1.0, 1.9])
def test_the_closed_form_is_the_recursion(rate: float) -> None:
    model, size = NoisyQuadratic(50), 8
    h_D, s_D = model.curvature_D, np.ones(50)
    for step in range(200):
        assert model.second_moments(size, rate, step) == pytest.approx(s_D, rel=1e-12)
        s_D = (1 - rate * h_D) ** 2 * s_D + rate**2 * h_D / size
    assert model.loss(size, rate, 200) == pytest.approx(h_D @ s_D / 2, rel=1e-12)


@pytest.mark.parametrize(("size", "rate"), [(256, 0.3), (256, 1.0), (inf, 1.9)])
def test_the_first_step_below_the_target(size: float, rate: float) -> None:
    model = NoisyQuadratic(50)
    steps = model.steps_to(0.1, size, rate)
    losses = [model.loss(size, rate, step) for step in range(int(steps) + 1)]
    assert losses[-1] <= 0.1 < min(losses[:-1])


def test_a_rate_that_never_arrives() -> None:
    model = NoisyQuadratic(50)
    assert model.steps_to(0.01, 1, 1.0) == inf  # the noise alone keeps the loss higher
    assert model.steps_to(0.01, 64, 1.9999) == inf  # the first direction's
    with pytest.raises(ValueError, match="no rate"):
        model.best(0.01, 1, [1.0, 1.5])
    with pytest.raises(ValueError, match="target"):
        model.steps_to(5.0, 64, 0.1)
    with pytest.raises(ValueError, match="rate"):
        model.steps_to(0.1, 64, 3.0)


def test_noise_scales_are_those_of_simulated_gradients() -> None:
    """E|g_B - g|^2 / |g|^2 = B_simple / B, and the same in the metric of the curvature."""
    model, size = NoisyQuadratic(20), 4
    h_D = model.curvature_D
    x_D = np.random.default_rng(0).normal(size=20)
    noise_ND = np.random.default_rng(1).normal(size=(40_000, 20)) * np.sqrt(h_D / size)
    gradient_D = h_D * x_D
    scale = model.noise_scale(x_D**2)
    plain = (noise_ND**2).sum(axis=1).mean() / (gradient_D**2).sum()
    curved = (h_D * noise_ND**2).sum(axis=1).mean() / (h_D * gradient_D**2).sum()
    assert plain * size == pytest.approx(scale.simple, rel=0.03)
    assert curved * size == pytest.approx(scale.noise, rel=0.03)
    assert curved * size != pytest.approx(scale.simple, rel=0.3)  # the negative control
