"""Axes: where their ticks stand and how their titles lie."""

from json import dumps
from math import ceil, floor, log10
from textwrap import wrap
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from batchlab.record import Axis

MOST_DECADES = 8  # labelled ones
Y_TICKS = 6
EDGE = 6  # pixels between the data and the ends of an axis
LINE_LENGTH = 16  # characters in a line of a category's label
PLAIN = "~g"


def x_axis(axis: Axis, shown: pd.Series, categories: bool) -> alt.X:
    """The x axis over all that is `shown` along it: as many ticks as there is room for."""
    if categories:
        # Long labels take several lines.
        lines = {str(label): wrap(str(label), LINE_LENGTH) for label in shown.unique()}
        label: dict[str, Any] = {
            "labelExpr": f"{dumps(lines)}[datum.value]",
            "labelAngle": 0,
            "labelFlush": False,
        }
        look = alt.Axis(title=axis.title, domain=False, ticks=False, **label)
        return alt.X("x:N", sort=None, axis=look)
    ticks = {} if axis.log else {"tickCount": alt.ExprRef("ceil(width / 60)")}
    return alt.X("x:Q", scale=_scale(axis, nice=False), axis=_look(axis, shown, **ticks))


def y_axis(axis: Axis, shown: pd.Series, categories: bool, lifted: bool) -> alt.Y:
    """The y axis over all that is `shown` along it; `lifted`: see `lying`."""
    if categories:
        look = alt.Axis(title=axis.title, grid=True, **lying(lifted))
        return alt.Y("y:N", sort=None, axis=look)
    look = _look(axis, shown, tickCount=Y_TICKS, **lying(lifted))
    return alt.Y("y:Q", scale=_scale(axis, nice=Y_TICKS), axis=look)


def lying(lifted: bool) -> dict[str, Any]:
    """A y axis's title on top: read without turning the head, and leaving the figure its width.

    `lifted` makes room for the labels of upright reference lines.
    """
    return {
        "titleAngle": 0,
        "titleAlign": "left",
        "titleBaseline": "bottom",
        "titleX": 0,
        "titleY": -26 if lifted else -9,
    }


def log_ticks(shown: pd.Series) -> list[float]:
    """Ticks of a log axis over positive numbers.

    Powers of two where most numbers are (batch sizes); else powers of ten, or 1, 2, 5 where these
    are too few, or even steps where those are too.
    """
    distinct = np.unique(shown.to_numpy(float))
    if not len(distinct):
        return []
    low, high = float(distinct[0]), float(distinct[-1])
    twos = [float(v) for v in distinct if v >= 1 and np.log2(v) % 1 == 0]
    if len(twos) > 2 and len(twos) * 2 >= len(distinct):
        return twos
    exponents = range(ceil(log10(low)), floor(log10(high)) + 1)
    if len(exponents) > 2:
        return [10.0**e for e in exponents[:: ceil(len(exponents) / MOST_DECADES)]]
    below = range(floor(log10(low)), ceil(log10(high)) + 1)
    fine = [m * 10.0**e for e in below for m in (1, 2, 5)]
    inside = [tick for tick in fine if low <= tick <= high]
    return inside if len(inside) > 2 else _even(low, high)


def _even(low: float, high: float) -> list[float]:
    if low == high:
        return [low]
    rough = (high - low) / 7
    unit = 10.0 ** floor(log10(rough))
    step = next(m * unit for m in (1, 2, 5, 10) if m * unit >= rough)
    return [step * i for i in range(ceil(low / step), floor(high / step) + 1)]


def _scale(axis: Axis, nice: bool | int) -> alt.Scale:
    if axis.log:
        # Nice would go on to the next power of ten.
        return alt.Scale(type="log", nice=False, padding=EDGE)
    return alt.Scale(zero=axis.zero, nice=nice, padding=alt.Undefined if nice else EDGE)


def _look(axis: Axis, shown: pd.Series, **more: Any) -> alt.Axis:
    if axis.log:
        more["values"] = log_ticks(shown)
    if axis.format or axis.log:
        more["format"] = axis.format or PLAIN
    return alt.Axis(title=axis.title, **more)
