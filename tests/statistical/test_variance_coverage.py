"""Intervals of variance shares cover the truth as often as they say; without the orders not."""

from math import sqrt

import numpy as np
import pytest
from numpy.typing import NDArray

from batchlab.analysis import variance

RUNS = 400


def covered(
    components: tuple[float, float, float], shape: tuple[int, int] = (20, 20), tails: float = 0.0
) -> NDArray[np.float64]:
    """The part of runs whose three intervals cover the true shares; t-distributed if `tails`."""
    generator = np.random.default_rng(0)

    def effects(size: tuple[int, int]) -> NDArray[np.float64]:
        if not tails:
            return generator.standard_normal(size)
        made: NDArray[np.float64] = generator.standard_t(tails, size) * sqrt((tails - 2) / tails)
        return made

    d, o = shape
    truth = np.array(components) / sum(components)
    scale = np.sqrt(components)
    hits = np.zeros(3)
    for _ in range(RUNS):
        y = scale[0] * effects((d, 1)) + scale[1] * effects((1, o)) + scale[2] * effects((d, o))
        intervals = variance.shares(y)
        hits += [i.low <= t <= i.high for i, t in zip(intervals, truth, strict=True)]
    return hits / RUNS


@pytest.mark.parametrize(
    "components",
    [(1.0, 1.0, 1.0), (0.9, 0.05, 0.05), (0.5, 0.1, 0.4), (0.05, 0.9, 0.05)],
)
def test_normal_effects(components: tuple[float, float, float]) -> None:
    told = covered(components)
    assert np.all(told >= 0.90)
    assert np.all(told <= 0.99)


def test_heavy_tailed_effects() -> None:
    assert np.all(covered((1.0, 1.0, 1.0), tails=5.0) >= 0.90)


def test_fewer_orders_than_draws() -> None:
    assert np.all(covered((1.0, 0.3, 1.0), shape=(50, 10)) >= 0.90)


@pytest.mark.parametrize(
    "components", [(0.0, 0.0, 1.0), (0.02, 0.02, 0.96), (0.1, 0.1, 0.8), (0.5, 0.0, 0.5)]
)
def test_small_components_are_covered_too(components: tuple[float, float, float]) -> None:
    """Up to 100%, not 99%, where the rest is nearly all: both jackknives count it."""
    assert np.all(covered(components) >= 0.93)


def test_negative_control_leaving_out_the_orders_covers_too_little(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    both = variance._jackknife

    def draws_only(y_DO: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
        return both(y_DO, axis) * (axis == 0)

    monkeypatch.setattr(variance, "_jackknife", draws_only)
    draw, order, _ = covered((1.0, 1.0, 1.0))
    assert order < 0.75
    assert draw < 0.93
