"""The noise scale against known truths: median, spread, coverage, refusals; and what hooks cost.

Examples' gradients are N(mu, sigma^2 I) in D dimensions; a batch's two norms are then drawn exactly
(a noncentral and an independent central chi-square) and go through the probes' own formula. How
precise |G|^2 can be depends on D, in a real model on tr(Sigma)^2 / tr(Sigma^2), which may be far
below its number of parameters.

- Truth: every step at the same weights. "10 steps of 640" are the same examples accumulated.
- Pure noise: mu = 0, the part of seeds refused.
- Correlated: log |G|^2 is an autoregression of first order along training, its standard deviation
  0.5; coverage of the interval, and of one that takes steps for independent.
- --overhead: training steps of a 784-256-256-10 perceptron, plain and with per-example norms every
  step, in turns; the median of each turn's ratio, and the ratio of the fastest.

    python benchmarks/noise_scale.py [--seeds N] [--overhead]
"""

import argparse
from math import isfinite
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import signal
from torch import nn
from torch.nn import functional as F

from batchlab.analysis.noise_scale import NoiseScale, estimate
from batchlab.probes.noise_scale import NoiseStatistics
from batchlab.probes.parts import unbiased
from batchlab.probes.per_example import PerExampleNorms
from batchlab.record import NoiseSeries

TRUTHS = (16.0, 256.0, 2048.0)


def drawn(
    generator: np.random.Generator,
    square_S: NDArray[np.float64],
    dimension: int,
    batch: int,
    part: int = 1,
) -> NoiseSeries:
    """A series whose true tau is 1 and |G|^2 `square_S`, from batches in parts of that size."""
    d, n = dimension, batch
    whole_S = generator.noncentral_chisquare(d, square_S * n * d) / (d * n)
    within_S = generator.chisquare(d * (n // part - 1), len(square_S)) / (d * n)
    tau_S, told_S = unbiased(whole_S + within_S, whole_S, part, n)
    return NoiseSeries(tau_S, told_S, np.full(len(square_S), float(n)))


def row(label: str, truth: float, told: list[NoiseScale]) -> None:
    """Medians, spread and coverage of all seeds."""
    effects = np.array([t.scale.effect for t in told])
    low, middle, high = np.quantile(effects, [0.1, 0.5, 0.9], method="nearest")
    covered = np.mean([t.scale.low <= truth <= t.scale.high for t in told])
    decided = np.mean([t.decided for t in told])
    widths = [(t.scale.high - t.scale.low) / truth for t in told if isfinite(t.scale.high)]
    print(
        f"{label:<34}{truth:6.0f}{np.median(effects[:20]):10.1f}{middle:9.1f}{low:9.1f}{high:9.1f}"
        f"{covered:10.3f}{decided:9.3f}{np.median(widths):8.2f}",
        flush=True,
    )


def truths(seeds: int) -> None:
    """Known noise scales at fixed weights."""
    print(
        f"{'100 steps of 64, per example':<34}{'truth':>6}{'median 20':>10}{'median':>9}{'p10':>9}"
        f"{'p90':>9}{'coverage':>10}{'decided':>9}{'width':>8}"
    )
    for label, dimension, steps, batch, part in (
        ("D = 1,000", 1000, 100, 64, 1),
        ("D = 100", 100, 100, 64, 1),
        ("D = 10,000", 10_000, 100, 64, 1),
        ("D = 1,000, two halves of 32", 1000, 100, 64, 32),
        ("D = 1,000, 10 steps of 640", 1000, 10, 640, 1),
    ):
        for truth in TRUTHS:
            square_S = np.full(steps, 1 / truth)
            generators = [np.random.default_rng([seed, dimension]) for seed in range(seeds)]
            told = [estimate(drawn(g, square_S, dimension, batch, part)) for g in generators]
            row(label, truth, told)


def noise(seeds: int) -> None:
    """How often pure noise is refused."""
    told = [
        estimate(drawn(np.random.default_rng([seed, 1]), np.zeros(100), 1000, 64))
        for seed in range(seeds)
    ]
    print(f"\npure noise, D = 1,000: {sum(not t.decided for t in told)} of {seeds} refused")
    print(f"first 100: {sum(not t.decided for t in told[:100])}")


def correlated(seeds: int) -> None:
    """Coverage where |G|^2 wanders along training."""
    print(f"\n{'autoregression':<16}{'steps':>6}{'truth':>7}{'coverage':>10}{'blocks of 1':>13}")
    for phi in (0.5, 0.8, 0.9):
        for steps in (100, 400):
            for truth in TRUTHS:
                hits = np.zeros(2)
                for seed in range(seeds):
                    g = np.random.default_rng([seed, steps])
                    noise_S = g.normal(size=steps) * np.sqrt(1 - phi * phi)
                    noise_S[0] /= np.sqrt(1 - phi * phi)
                    walk_S = signal.lfilter([1.0], [1.0, -phi], noise_S)
                    series = drawn(g, np.exp(0.5 * walk_S - 0.125) / truth, 1000, 64)
                    both = [estimate(series, block).scale for block in (None, 1)]
                    hits += [i.low <= truth <= i.high for i in both]
                ours, naive = (hits / seeds).tolist()
                print(f"{phi:<16}{steps:6}{truth:7.0f}{ours:10.3f}{naive:13.3f}", flush=True)


def overhead(rounds: int) -> None:
    """Plain and tracked training steps in turns, one thread."""
    torch.set_num_threads(1)
    print(f"\n{'batch':<8}{'plain ms':>10}{'tracked ms':>12}{'median ratio':>14}{'of fastest':>12}")
    for batch in (32, 128, 512):
        x, y = torch.randn(batch, 784), torch.randint(10, (batch,))
        seconds: list[list[float]] = [[], []]
        models = [
            nn.Sequential(
                nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
            )
            for _ in range(2)
        ]
        optimizers = [torch.optim.SGD(m.parameters(), lr=0.01) for m in models]
        norms = PerExampleNorms(models[1])
        statistics = NoiseStatistics(norms.names)
        for _ in range(rounds):
            for tracked in (0, 1):
                begun = perf_counter()
                optimizers[tracked].zero_grad()
                F.cross_entropy(models[tracked](x), y).backward()
                if tracked:
                    statistics.update(norms.take())
                optimizers[tracked].step()
                seconds[tracked].append(perf_counter() - begun)
        plain, tracked_s = (np.array(s[rounds // 10 :]) * 1e3 for s in seconds)
        fastest = np.quantile(tracked_s, 0.1) / np.quantile(plain, 0.1)
        print(
            f"{batch:<8}{np.quantile(plain, 0.1):10.3f}{np.quantile(tracked_s, 0.1):12.3f}"
            f"{np.median(tracked_s / plain):14.3f}{fastest:12.3f}"
        )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--overhead", action="store_true", help="time the hooks, nothing else")
    given = parser.parse_args()
    if given.overhead:
        overhead(400)
        return
    truths(given.seeds)
    noise(max(given.seeds, 100))
    correlated(given.seeds)


if __name__ == "__main__":
    main()
