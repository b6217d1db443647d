"""Predictions of the best batch size against the truth, on the noisy quadratic model.

Prints three tables: the exact steps to the target beside the fitted hyperbola and beside what a
monotone curve through the other sizes says; the noise scales of runs at several batch sizes; and,
for machines of several throughputs, the best size predicted from each source, its range, the exact
best, and by how much the predicted one costs more.

    python benchmarks/noisy_quadratic.py [--noisy RUNS]

A predicted size is right where the exact best is in the range. `sweep` is the hyperbola fitted to
all exact steps; `monotone` reads every other size; `B_noise` and `B_simple` are of one run, half
way to the target; with `x/ 5`, B_simple is said to be within 5 times B_crit. `--noisy` repeats
B_noise off at random, with the interval that says so.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from math import exp, inf

import numpy as np
import pandas as pd

from batchlab.analysis.intervals import Interval
from batchlab.analysis.noisy_quadratic import NoiseScale, NoisyQuadratic, Optimum
from batchlab.analysis.prediction import Anchored, Prediction, Steps, predict
from batchlab.analysis.steps import monotone
from batchlab.analysis.throughput import Throughput, measured
from batchlab.analysis.trade_off import fit

TARGET = 0.01
SIZES = tuple(4.0 * 2**k for k in range(13))  # 4 to 16,384
LISTED = (4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16384.0, 2.0**20)
ANCHORS = (16.0, 256.0, 1024.0, 4096.0)
GRID_ERROR = 0.005  # of steps, from 160 rates
FACTOR = 5.0  # how far B_simple may be from B_crit

# Seconds a step: affine a + b B, rooflines, and two that have no knee.
MACHINES: dict[str, Callable[[float], float]] = {
    "a/b = 8": lambda b: 1e-3 + 1.25e-4 * b,
    "a/b = 64": lambda b: 1e-3 + 1.6e-5 * b,
    "a/b = 512": lambda b: 1e-3 + 2e-6 * b,
    "a/b = 4096": lambda b: 1e-3 + 2.5e-7 * b,
    "knee 256": lambda b: max(1e-3, b / 256e3),
    "knee 2048": lambda b: max(1e-3, b / 2048e3),
    "root of B": lambda b: 1e-3 * b**0.5,
    "constant": lambda _: 1e-3,
}


def frame(steps: dict[float, int]) -> pd.DataFrame:
    return pd.DataFrame(
        [(size, 0, float(n), "reached") for size, n in steps.items()],
        columns=["batch_size", "seed", "steps", "outcome"],
    )


def half_way(model: NoisyQuadratic, size: float, optimum: Optimum) -> NoiseScale:
    return model.noise_scale(model.second_moments(size, optimum.rate, optimum.steps / 2))


def pooled(model: NoisyQuadratic, size: float, optimum: Optimum) -> NoiseScale:
    """Of squared gradients averaged over all steps of a run: sums of (1 - a h)^2t are geometric."""
    rest_D = model.second_moments(size, optimum.rate, 1e18)
    shrink_D = (1 - optimum.rate * model.curvature_D) ** 2
    steps = optimum.steps
    mean_D = (1 - shrink_D**steps) / (1 - shrink_D) / steps
    return model.noise_scale(rest_D + mean_D * (1 - rest_D))


def machine(seconds: Callable[[float], float]) -> Throughput:
    """Timed without error, twice each."""
    rows = [(size, seconds(size)) for size in SIZES for _ in range(2)]
    return measured(pd.DataFrame(rows, columns=["batch_size", "seconds"]))


def anchored(noise: float, size: float, steps: int, width: float = 1.0) -> Anchored:
    """`width`: the interval's ends over the estimate."""
    return Anchored(
        Interval(noise, noise / width, noise * width, 1),
        size,
        Interval(steps, steps, steps, 1),
    )


def steps_table(model: NoisyQuadratic) -> None:
    exact = {size: model.best(TARGET, size).steps for size in LISTED}
    told = fit(frame(exact), error=GRID_ERROR)
    print(f"B_crit {told.critical}; S_min {told.least_steps}\n{told.misfit}")
    print(f"{'batch':>8} {'exact':>10} {'hyperbola':>10} {'exact over':>11} {'monotone':>10}")
    for size, steps in exact.items():
        rest = {b: s for b, s in exact.items() if b != size}
        inner = min(rest) < size < max(rest)
        left = monotone(frame(rest)).at(size).steps.effect / steps - 1 if inner else None
        fitted = told.steps(size).effect
        print(
            f"{size:8.0f} {steps:10,d} {fitted:10,.0f} {100 * (steps / fitted - 1):+10.1f}%"
            f" {'' if left is None else f'{100 * left:+9.1f}%'}"
        )
    print()


def predictions(exact: dict[float, int], scales: dict[float, NoiseScale]) -> None:
    sources: dict[str, Steps] = {
        "sweep": fit(frame(exact), error=GRID_ERROR),
        "monotone": monotone(frame({b: exact[b] for b in SIZES[::2]})),
    }
    for size, scale in scales.items():
        sources[f"B_noise at {size:.0f}"] = anchored(scale.noise, size, exact[size])
        sources[f"B_simple at {size:.0f}"] = anchored(scale.simple, size, exact[size])
        wide = replace(anchored(scale.simple, size, exact[size]), factor=FACTOR)
        sources[f"B_simple x/ {FACTOR:g} at {size:.0f}"] = wide
    print("best size predicted, and its cost over the exact best's; * exact best not in range")
    print(f"{'':22}" + "".join(f"{name:>16}" for name in MACHINES) + "  right/told")
    costs = [{b: exact[b] * seconds(b) for b in SIZES} for seconds in MACHINES.values()]
    bests = [min(cost, key=lambda b: cost[b]) for cost in costs]
    print(f"{'exact':22}" + "".join(f"{best:16.0f}" for best in bests))
    timings = [machine(seconds) for seconds in MACHINES.values()]
    for source, steps in sources.items():
        told = [predict(steps, timing) for timing in timings]
        cells = "".join(f"{said(one, cost):>16}" for one, cost in zip(told, costs, strict=True))
        right = sum(holds(one, best) for one, best in zip(told, bests, strict=True))
        given = sum(one.time is not None for one in told)
        print(f"{source:22}{cells}  {right}/{given}")


def holds(told: Prediction, best: float) -> bool:
    return told.time is not None and best in told.time.sizes


def said(told: Prediction, cost: dict[float, float]) -> str:
    if told.time is None:
        return "can't tell"
    best = min(cost, key=lambda b: cost[b])
    mark = " " if holds(told, best) else "*"
    return f"{told.time.best:.0f} {cost[told.time.best] / cost[best] - 1:+.1%}{mark}"


def noisy(exact: dict[float, int], scales: dict[float, NoiseScale], runs: int) -> None:
    """A noise scale that is off by a factor of log-normal size, with the interval that says so."""
    print("\nB_noise off at random, anchors 16 to 4096 in turn, all machines:")
    print("    interval  in range  possible  cost: mean   worst  none")
    generator = np.random.default_rng(0)
    for width in (1.2, 1.5, 2.0, 4.0, 16.0, inf):
        held = likely = none = count = 0
        over = []
        for k in range(runs):
            size = ANCHORS[k // len(MACHINES) % len(ANCHORS)]
            seconds = list(MACHINES.values())[k % len(MACHINES)]
            cost = {b: exact[b] * seconds(b) for b in SIZES}
            best = min(cost, key=lambda b: cost[b])
            off = exp(generator.standard_normal() * np.log(min(width, 16.0)) / 1.96)
            source = anchored(scales[size].noise * off, size, exact[size], width)
            told = predict(source, machine(seconds))
            count += 1
            if told.time is None:
                none += 1
                continue
            held += holds(told, best)
            likely += best in told.time.possible
            over.append(cost[told.time.best] / cost[best] - 1)
        given = max(count - none, 1)
        text = "0 to inf" if width == inf else f"x/ {width:g}"
        print(
            f"{text:>12} {held / given:9.0%} {likely / given:9.0%} {np.mean(over):+11.1%}"
            f" {max(over):+7.1%} {none / count:6.0%}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--noisy", type=int, default=96, help="runs with a noise scale that is off")
    arguments = parser.parse_args()
    model = NoisyQuadratic()
    steps_table(model)
    exact, scales = {}, {}
    print(f"{'':>26} {'half way':>18} {'over all steps':>18}")
    print(f"{'run at':>8} {'rate':>7} {'steps':>9}" + 2 * f" {'B_noise':>8} {'B_simple':>9}")
    for size in SIZES:
        optimum = model.best(TARGET, size)
        exact[size] = optimum.steps
        if size in ANCHORS:
            scales[size] = half_way(model, size, optimum)
            both = (*scales[size], *pooled(model, size, optimum))
            simple, noise, all_simple, all_noise = both
            print(
                f"{size:8.0f} {optimum.rate:7.3f} {optimum.steps:9,d}"
                f" {noise:8.0f} {simple:9.0f} {all_noise:8.0f} {all_simple:9.0f}"
            )
    print()
    predictions(exact, scales)
    noisy(exact, scales, arguments.noisy)


if __name__ == "__main__":
    main()
