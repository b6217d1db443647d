"""How often intervals of the trade-off and of the knee cover the truth, over many simulations.

Sweeps are simulated from S_min = 1000 and B_crit = 200 with log-normal trials, and timings of a
machine that needs 1 ms + 20 us a sample, with log-normal repetitions; each is fitted again and
again. 95% is what the intervals say. `open` is the part of B_crit's that have an end at 0 or inf.

    python benchmarks/trade_off.py [--runs N]
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import numpy as np
import pandas as pd

from batchlab.analysis.intervals import Interval
from batchlab.analysis.throughput import measured
from batchlab.analysis.trade_off import fit

LEAST, CRITICAL = 1000.0, 200.0
FLOOR, SLOPE = 1e-3, 2e-5
KNEE = 4.5 * FLOOR / SLOPE  # of 10%, affine


@dataclass(frozen=True)
class Case:
    """Sizes, trials at each, spread of log steps, of a seed's at all sizes, and the budget."""

    sizes: Sequence[float] = (16, 64, 256, 1024)
    seeds: int = 5
    error: float = 0.1
    shared: float = 0.0
    budget: float = inf

    def simulate(self, generator: np.random.Generator) -> pd.DataFrame:
        luck = self.shared * generator.standard_normal(self.seeds)
        rows = []
        for size in self.sizes:
            noise = luck + self.error * generator.standard_normal(self.seeds)
            for seed, steps in enumerate((LEAST * (1 + CRITICAL / size) * np.exp(noise)).tolist()):
                outcome = "reached" if steps <= self.budget else "unreached"
                rows.append((size, seed, min(steps, self.budget), outcome))
        return pd.DataFrame(rows, columns=["batch_size", "seed", "steps", "outcome"])


CASES: dict[str, Case] = {
    "4 sizes, 1 trial": Case(seeds=1),
    "4 sizes, 2 trials": Case(seeds=2),
    "4 sizes, 5 trials": Case(),
    "3 sizes, 3 trials": Case((64, 256, 1024), seeds=3),
    "2 sizes, 5 trials": Case((64, 1024)),
    "8 sizes, 1 trial": Case([8.0 * 2**k for k in range(8)], seeds=1),
    "error 0.3": Case(error=0.3),
    "error 0.3, censored": Case(error=0.3, budget=13_500),
    "seeds' luck 0.1": Case(error=0.05, shared=0.1),
    "sizes below B_crit": Case((2, 8, 32)),
}


def inside(interval: Interval, truth: float) -> bool:
    return interval.low <= truth <= interval.high


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=500, help="simulations of each case")
    runs = parser.parse_args().runs
    print(f"{'case':22}{'B_crit':>8}{'S_min':>8}{'E_min':>8}{'S(64)':>8}{'misfit':>8}{'open':>8}")
    for name, case in CASES.items():
        generator, hits = np.random.default_rng(0), np.zeros(6)
        for _ in range(runs):
            told = fit(case.simulate(generator))
            hits += [
                inside(told.critical, CRITICAL),
                inside(told.least_steps, LEAST),
                inside(told.least_samples, LEAST * CRITICAL),
                inside(told.steps(64), LEAST * (1 + CRITICAL / 64)),
                told.misfit.verdict == "misfits",
                told.critical.low == 0 or told.critical.high == inf,
            ]
        print(f"{name:22}" + "".join(f"{hit / runs:8.1%}" for hit in hits), flush=True)
    print(f"\n{'knee, repetitions':22}{'covered':>8}")
    sizes = np.repeat([2.0**k for k in range(10)], 20)
    for repeats in (2, 3, 5, 10):
        generator, held, count = np.random.default_rng(0), 0, max(runs // 10, 1)
        for _ in range(count):
            size_N = sizes.reshape(10, 20)[:, :repeats].ravel()
            noise_N = np.exp(0.02 * generator.standard_normal(len(size_N)))
            frame = pd.DataFrame(
                {"batch_size": size_N, "seconds": (FLOOR + SLOPE * size_N) * noise_N}
            )
            held += inside(measured(frame).knee(), KNEE)
        print(f"{repeats:<22}{held / count:8.1%}", flush=True)


if __name__ == "__main__":
    main()
