"""The interval covers the truth as often as it says; a wrong one is caught."""

import numpy as np

from batchlab.analysis.intervals import mean_interval

RUNS = 4000


def covered(scale: float) -> float:
    generator = np.random.default_rng(0)
    hits = 0
    for _ in range(RUNS):
        i = mean_interval(generator.normal(3, 2, size=5))
        half = scale * (i.high - i.effect)
        hits += abs(i.effect - 3) <= half
    return hits / RUNS


def test_95_percent_at_five_seeds() -> None:
    sd = (0.95 * 0.05 / RUNS) ** 0.5
    assert abs(covered(1) - 0.95) < 4 * sd


def test_negative_control_normal_quantile_covers_too_little() -> None:
    sd = (0.95 * 0.05 / RUNS) ** 0.5
    assert covered(1.96 / 2.776) < 0.95 - 8 * sd
