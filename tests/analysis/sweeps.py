"""Simulated sweeps of batch sizes."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

LEAST, CRITICAL = 1000.0, 200.0
SIZES: tuple[float, ...] = (16, 64, 256, 1024)


def sweep(
    generator: np.random.Generator,
    sizes: Sequence[float] = SIZES,
    seeds: int = 5,
    error: float = 0.1,
    seed_error: float = 0.0,
    budget: float = np.inf,
    sharpness: float = 1.0,
) -> pd.DataFrame:
    """Steps S_min (1 + (B_crit / B)^p)^(1/p): the hyperbola at p = 1, with a sharper knee above.

    Each times exp(normal), and one such factor a seed at all sizes.
    """
    rows = []
    shared = seed_error * generator.standard_normal(seeds)
    for size in sizes:
        steps = LEAST * (1 + (CRITICAL / size) ** sharpness) ** (1 / sharpness)
        for seed in range(seeds):
            taken = steps * np.exp(shared[seed] + error * generator.standard_normal())
            outcome = "reached" if taken <= budget else "unreached"
            rows.append((size, seed, min(taken, budget), outcome))
    return pd.DataFrame(rows, columns=["batch_size", "seed", "steps", "outcome"])
