"""Axes: where their ticks stand and how their titles lie."""

from math import ceil, floor, log10
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from batchlab.record import Axis

# From this many decades on, only powers of ten have ticks.
DECADES = 1.7
MOST_TICKS = 8
PLAIN = "~g"


def log_ticks(values: pd.Series) -> list[float]:
    """Ticks of a log axis over positive values.

    Powers of two where most values are (batch sizes), else powers of ten, else 1, 2, 5.
    """
    if values.empty:
        return []
    low, high = float(values.min()), float(values.max())
    distinct = np.unique(values.to_numpy(float))
    twos = [float(v) for v in distinct if v >= 1 and np.log2(v) % 1 == 0]
    if len(twos) > 2 and len(twos) * 2 >= len(distinct):
        return twos
    first, last = floor(log10(low)), ceil(log10(high))
    if log10(high / low) < DECADES:
        fine = [m * 10.0**e for e in range(first, last + 1) for m in (1, 2, 5)]
        inside = [tick for tick in fine if low <= tick <= high]
        return inside if len(inside) > 1 else []
    step = ceil((last - first) / MOST_TICKS)
    return [10.0**e for e in range(first, last + 1, step)]


def quantitative(axis: Axis, values: pd.Series, upright: bool = False) -> dict[str, Any]:
    """Scale and axis of a numeric column; `upright` is the y axis, its title lying on top."""
    look: dict[str, Any] = {"title": axis.title, **(_on_top() if upright else {})}
    if axis.format or axis.log:
        look["format"] = axis.format or PLAIN
    if axis.log:
        # Base two and ten draw the same; without nice the data fill the width.
        scale = alt.Scale(type="log", nice=False, padding=6)
        if ticks := log_ticks(values):
            look["values"] = ticks
    elif upright:
        scale = alt.Scale(zero=axis.zero, nice=True)
    else:
        scale = alt.Scale(zero=axis.zero, nice=False, padding=6)
    return {"scale": scale, "axis": alt.Axis(**look)}


def categorical(axis: Axis, upright: bool = False) -> dict[str, Any]:
    """Axis of a text column, in the frame's order."""
    place = _on_top() if upright else {"labelAngle": 0}
    return {"sort": None, "axis": alt.Axis(title=axis.title, grid=upright, **place)}


def _on_top() -> dict[str, Any]:
    # A title that lies is read without turning the head, and leaves the width to the figure.
    return {
        "titleAngle": 0,
        "titleAlign": "left",
        "titleBaseline": "bottom",
        "titleX": 0,
        "titleY": -9,
    }
