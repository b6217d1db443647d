"""Measurements with known answers: a machine, and the trade-off's steps."""

import pandas as pd

from batchlab.analysis.intervals import Interval
from batchlab.analysis.throughput import Throughput, measured

SIZES = tuple(2.0**k for k in range(12))


def machine(floor: float, per_sample: float = 1.0) -> Throughput:
    """Seconds a step floor + per_sample B, measured all but exactly."""
    rows = [(b, (floor + per_sample * b) * (1 + off)) for b in SIZES for off in (-1e-3, 0.0, 1e-3)]
    return measured(pd.DataFrame(rows, columns=["batch_size", "seconds"]))


def about(value: float, factor: float = 1.0) -> Interval:
    return Interval(value, value / factor, value * factor, 4)
