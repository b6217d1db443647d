"""The hyperbola's intervals cover the truth as often as they say; narrower ones do not."""

import numpy as np
import pytest

from batchlab.analysis.intervals import Interval
from batchlab.analysis.trade_off import fit
from tests.analysis.sweeps import CRITICAL, LEAST, sweep

RUNS = 100


def covered(how: dict[str, float], narrower: float = 1.0, runs: int = RUNS) -> list[float]:
    """The part of simulated sweeps whose intervals cover B_crit, S_min, E_min, steps at 32."""
    generator = np.random.default_rng(0)
    truths = CRITICAL, LEAST, CRITICAL * LEAST, LEAST * (1 + CRITICAL / 32)
    hits = np.zeros(4)
    for _ in range(runs):
        told = fit(sweep(generator, **how))  # type: ignore[arg-type]
        intervals = told.critical, told.least_steps, told.least_samples, told.steps(32)
        hits += [holds(i, t, narrower) for i, t in zip(intervals, truths, strict=True)]
    return [float(hit) / runs for hit in hits]


def holds(interval: Interval, truth: float, narrower: float) -> bool:
    with np.errstate(divide="ignore"):
        low, middle, high = np.log([interval.low, interval.effect, interval.high])
    return bool(
        middle - narrower * (middle - low) <= np.log(truth) <= middle + narrower * (high - middle)
    )


@pytest.mark.parametrize(
    "how",
    [{"seeds": 1}, {"seeds": 3}, {"error": 0.3}, {"error": 0.05, "seed_error": 0.1}],
    ids=["one trial a size", "three", "much noise", "seeds' own luck"],
)
def test_at_least_95_percent(how: dict[str, float]) -> None:
    assert min(covered(how)) > 0.95 - 3 * (0.95 * 0.05 / RUNS) ** 0.5


def test_censored_sizes() -> None:
    assert (
        min(covered({"error": 0.3, "budget": 13_500}, runs=40))
        > 0.95 - 3 * (0.95 * 0.05 / 40) ** 0.5
    )


def test_negative_control_intervals_of_half_the_width() -> None:
    assert max(covered({"seeds": 1}, narrower=0.5)) < 0.9
