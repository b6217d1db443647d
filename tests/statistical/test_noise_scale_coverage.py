"""The noise scale against known truths: its median, its interval's coverage, and what it refuses.

Examples' gradients are N(mu, sigma^2 I) in D dimensions with tr(Sigma) = 1. The statistics of a
batch are then drawn exactly: |gbar|^2 is a noncentral chi-square, the spread within the batch an
independent chi-square (Cochran's theorem). One test goes through a real layer's hooks instead.

Shapes: R seeds, S steps.
"""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import signal
from torch import nn

from batchlab.analysis import noise_scale as analysis
from batchlab.analysis.noise_scale import estimate, noise_scale
from batchlab.probes.noise_scale import NoiseStatistics
from batchlab.probes.parts import unbiased
from batchlab.probes.per_example import PerExampleNorms
from batchlab.record import ALL, NoiseSeries

D, BATCH, STEPS = 1000, 64, 100


def drawn(seed: int, square_S: NDArray[np.float64]) -> NoiseSeries:
    """A series whose true |G|^2 is given step by step, and tau is 1."""
    g = np.random.default_rng(seed)
    whole_S = g.noncentral_chisquare(D, square_S * BATCH * D) / (D * BATCH)
    within_S = g.chisquare(D * (BATCH - 1), len(square_S)) / D
    tau_S, told_S = unbiased(whole_S + within_S / BATCH, whole_S, 1, BATCH)
    return NoiseSeries(tau_S, told_S, np.full(len(square_S), float(BATCH)))


def independent(seed: int, truth: float) -> NoiseSeries:
    return drawn(seed, np.full(STEPS, 1 / truth if truth < np.inf else 0.0))


def correlated(seed: int, truth: float, phi: float) -> NoiseSeries:
    """log |G|^2 is an autoregression with standard deviation 0.5 along training."""
    noise_S = np.random.default_rng([seed, 1]).normal(size=4 * STEPS) * np.sqrt(1 - phi * phi)
    noise_S[0] /= np.sqrt(1 - phi * phi)
    x = signal.lfilter([1.0], [1.0, -phi], noise_S)
    return drawn(seed, np.exp(0.5 * x - 0.125) / truth)


def hits(series: list[NoiseSeries], truth: float) -> float:
    told = [estimate(s).scale for s in series]
    return float(np.mean([i.low <= truth <= i.high for i in told]))


@pytest.mark.parametrize("truth", [16.0, 256.0, 2048.0])
def test_median_spread_and_coverage(truth: float) -> None:
    seeds = 200
    series = [independent(seed, truth) for seed in range(seeds)]
    effects = np.array([estimate(s).scale.effect for s in series])
    low, middle, high = np.quantile(effects, [0.1, 0.5, 0.9])
    # The median of 200 has an error of its own: 1.25 standard deviations over the root of 200.
    error = 1.25 * (high - low) / 2.56 / np.sqrt(seeds)
    assert abs(middle - truth) < max(0.03 * truth, 4 * error)
    assert 1550 < low < high < 2700 or truth != 2048
    assert 0.90 <= hits(series, truth) <= 0.99


def test_negative_control_ratios_first() -> None:
    series = [independent(seed, 2048.0) for seed in range(20)]
    means = [float(np.mean(s.trace_S / s.square_S)) for s in series]
    medians = [float(np.median(s.trace_S / s.square_S)) for s in series]
    assert abs(float(np.median(means)) / 2048 - 1) > 0.3
    assert abs(float(np.median(medians)) / 2048 - 1) > 0.3
    assert abs(np.median([estimate(s).scale.effect for s in series]) / 2048 - 1) < 0.2


def test_pure_noise_is_refused() -> None:
    refused = [not estimate(independent(seed, np.inf)).decided for seed in range(400)]
    # 2.5% at most are taken for a signal; 95 of 100 is the bar.
    assert np.mean(refused) >= 0.95


@pytest.mark.parametrize("phi", [0.5, 0.8])
def test_correlated_steps(phi: float, monkeypatch: pytest.MonkeyPatch) -> None:
    series = [correlated(seed, 16.0, phi) for seed in range(200)]
    assert hits(series, 16.0) >= 0.88
    # The negative control: as if steps were independent.
    monkeypatch.setattr(analysis, "block_length", lambda _: 1)
    assert hits(series, 16.0) < 0.82


def test_true_vectors_through_a_layers_hooks() -> None:
    """The loss is the mean output of a single unit: an example's gradient is its input."""
    truth, dimension, batch = 16.0, 200, 16
    generator = torch.Generator().manual_seed(0)
    mean = torch.full((dimension,), 1 / np.sqrt(dimension * truth))
    model = nn.Linear(dimension, 1, bias=False)
    with PerExampleNorms(model) as norms:
        statistics = NoiseStatistics(norms.names)
        for _ in range(100):
            noise = torch.randn(batch, dimension, generator=generator) / np.sqrt(dimension)
            model.zero_grad()
            model(mean + noise).mean().backward()
            statistics.update(norms.take())
    told = noise_scale(statistics.compute()[ALL])
    assert told.scale.low < truth < told.scale.high < 1.2 * told.scale.low
    assert told.trace.effect == pytest.approx(1, rel=0.02)
