"""What a chart needs of a panel's frame: only the columns shown, under short names, as CSV.

Column names: `x y` the axes, `s` the series' label, `low high` the interval, `t` text, `tip` 1 on
the rows that answer the pointer; `base` a ridge's floor; `v` a cell's number, `dark` 1 where its
text has to be dark. CSV takes about half the room of JSON objects, and Vega reads it as well.
"""

import csv
from dataclasses import dataclass
from io import StringIO

import numpy as np
import pandas as pd

from batchlab.record import Axis, Panel
from batchlab.report.numbers import label

# Pointer targets a figure: each costs the browser two elements, and more do not help the hand.
TIPS = 300
RIDGE_OVERLAP = 1.9  # a ridge's height in rows
# Black text reads better than white above this place on viridis (where both have 4.5 to 1).
DARK_TEXT_FROM = 0.55


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows to draw, the labels of their series in palette order, and what the axes are."""

    frame: pd.DataFrame
    series: tuple[str, ...]
    x_numeric: bool
    y_numeric: bool

    @property
    def along(self) -> str:
        """The axis that intervals lie along."""
        return "y" if self.y_numeric else "x"

    def csv(self) -> str:
        """The rows as CSV, numbers with six significant digits; several times pandas' speed."""
        columns = [
            [format(v, ".6g") if v == v else "" for v in column.tolist()]
            if pd.api.types.is_float_dtype(column)
            else column.tolist()
            for _, column in self.frame.items()
        ]
        text = StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.frame.columns)
        writer.writerows(zip(*columns, strict=True))
        return text.getvalue()

    def parse(self) -> dict[str, str]:
        """Column name to the type that Vega is to read it as."""
        return {
            str(name): "number" if pd.api.types.is_numeric_dtype(column) else "string"
            for name, column in self.frame.items()
        }


def rows(panel: Panel) -> Rows:
    """The panel's rows; those that its axes cannot show are left out.

    Raises `ValueError` where the panel lacks a column that its mark needs.
    """
    _check(panel)
    source = panel.frame
    cells = panel.mark == "cells"
    x_numeric = not cells and pd.api.types.is_numeric_dtype(source[panel.x.field])
    y_numeric = not cells and pd.api.types.is_numeric_dtype(source[panel.y.field])
    columns = {
        "x": source[panel.x.field] if x_numeric else source[panel.x.field].map(label),
        "y": source[panel.y.field] if y_numeric else source[panel.y.field].map(label),
    }
    if panel.low and panel.high:
        columns |= {"low": source[panel.low], "high": source[panel.high]}
    if panel.series and not cells:
        columns["s"] = source[panel.series.field].map(label)
    frame = pd.DataFrame(columns)
    keep = pd.Series(True, index=frame.index)
    for name, axis, numeric in (("x", panel.x, x_numeric), ("y", panel.y, y_numeric)):
        if numeric:
            keep &= np.isfinite(frame[name]) & ~(axis.log & (frame[name] <= 0))
    frame = frame[keep]
    if panel.mark == "cells":
        frame = _cells(panel, frame)
    elif panel.mark == "ridge":
        frame = _ridges(frame)
    else:
        frame = _tips(_bounded(frame, "y" if y_numeric else "x", panel))
    return Rows(frame, _labels(panel, source[keep]), x_numeric, y_numeric)


def _check(panel: Panel) -> None:
    needs_series = panel.mark in ("ridge", "cells")
    if needs_series and panel.series is None:
        raise ValueError(f"panel {panel.id}: the mark {panel.mark} needs a series")
    if panel.mark == "cells" and panel.text is None:
        raise ValueError(f"panel {panel.id}: the mark cells needs a text column")
    if (panel.low is None) != (panel.high is None):
        raise ValueError(f"panel {panel.id}: low and high come together")
    if panel.mark == "cells" and panel.rules:
        raise ValueError(f"panel {panel.id}: cells have no scale for a reference line")
    if panel.mark == "ridge" and any(rule.y is not None for rule in panel.rules):
        raise ValueError(f"panel {panel.id}: ridges have no common scale for a level line")


def _labels(panel: Panel, source: pd.DataFrame) -> tuple[str, ...]:
    if panel.series is None or panel.mark == "cells":
        return ()
    values = source[panel.series.field].drop_duplicates()
    if panel.ordered and pd.api.types.is_numeric_dtype(values):
        values = values.sort_values()
    return tuple(dict.fromkeys(values.map(label)))


def _bounded(frame: pd.DataFrame, along: str, panel: Panel) -> pd.DataFrame:
    """Intervals that a log axis can show: what reaches zero ends at the smallest number shown."""
    axis: Axis = panel.y if along == "y" else panel.x
    if "low" not in frame or not axis.log:
        return frame
    shown = frame[[along, "low", "high"]]
    floor = shown[shown > 0].min().min()
    return frame.assign(low=frame["low"].clip(lower=floor), high=frame["high"].clip(lower=floor))


def _tips(frame: pd.DataFrame) -> pd.DataFrame:
    place = frame.groupby("s").cumcount() if "s" in frame else np.arange(len(frame))
    every = -(-len(frame) // TIPS) or 1
    return frame.assign(tip=(place % every == 0).astype(int))


def _ridges(frame: pd.DataFrame) -> pd.DataFrame:
    """Heights on top of whole-numbered floors, the frame's first series on the highest."""
    code = pd.factorize(frame["s"])[0]
    base = code.max(initial=0) - code
    return frame.assign(base=base, y=base + RIDGE_OVERLAP * frame["y"])


def _cells(panel: Panel, frame: pd.DataFrame) -> pd.DataFrame:
    assert panel.series is not None
    assert panel.text is not None
    value = panel.frame.loc[frame.index, panel.series.field].astype(float)
    if panel.series.log:
        value = value.where(value > 0)
    place = np.log(value) if panel.series.log else value
    place = (place - place.min()) / ((place.max() - place.min()) or 1.0)
    return frame.assign(
        v=value,
        t=panel.frame.loc[frame.index, panel.text].astype(str),
        dark=((place >= DARK_TEXT_FROM) | place.isna()).astype(int),
    )
