"""The chart's two Vega-Lite specifications: for the page and for the files."""

import json
from dataclasses import dataclass
from textwrap import wrap
from typing import Any

from altair.utils.schemapi import debug_mode

from batchlab.record import Panel
from batchlab.report import palette
from batchlab.report.axes import LINE_LENGTH
from batchlab.report.figures import PICKED, TIPS, chart
from batchlab.report.rows import Rows, rows

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
FILE_FONT = "Helvetica Neue, Helvetica, Arial, Liberation Sans, sans-serif"

FILE_WIDTH = 560
HEIGHT = 290
RIDGE_ROW = 23
CELL_LINE, CELL_PADDING = 14, 18
CATEGORY_ROW = 26


@dataclass(frozen=True, slots=True)
class Specs:
    """One figure's specifications as JSON text, and what the page draws around it."""

    page: str
    file: str
    series: tuple[tuple[str, str], ...]  # label and colour, for the legend
    least_width: int  # pixels below which the figure scrolls in its own frame
    empty: bool


def specs(panel: Panel) -> Specs:
    """The panel's specifications, from one chart.

    Checking it against the schema would take most of the time; the tests do so for every mark.
    """
    shown = rows(panel)
    with debug_mode(False):
        spec = chart(panel, shown).to_dict(validate=False)
    spec["height"] = _height(panel, shown)
    page = {
        **spec,
        "width": "container",
        "autosize": {"type": "fit-x", "contains": "padding"},
        "background": "transparent",
        "padding": {"left": 0, "right": 4, "top": 4, "bottom": 4},
        "config": _config(FONT, legend=panel.mark == "cells"),
    }
    file = {
        **spec,
        "layer": [layer for layer in spec["layer"] if layer.get("name") != TIPS],
        "params": [param for param in spec["params"] if param["name"] == PICKED],
        "title": {"text": panel.title, "anchor": "start", "frame": "group", "offset": 14},
        "width": FILE_WIDTH,
        "background": palette.PAPER,
        "padding": 16,
        "config": _config(FILE_FONT, legend=True),
    }
    names = shown.series if panel.mark != "ridge" and len(shown.series) > 1 else ()
    colours = palette.colours(len(names), panel.ordered)
    data = shown.csv()
    return Specs(
        page=_with_rows(json.dumps(page, allow_nan=False), data),
        file=_with_rows(palette.fixed(json.dumps(file, allow_nan=False)), data),
        series=tuple(zip(names, colours, strict=True)),
        least_width=_least_width(panel, shown),
        empty=shown.frame.empty,
    )


def _with_rows(spec: str, data: str) -> str:
    return f'{spec[:-1]}, "datasets": {{"rows": {json.dumps(data)}}}}}'


def _lines(shown: Rows) -> int:
    return int(shown.frame["t"].str.count("\n").max()) + 1 if len(shown.frame) else 1


def _height(panel: Panel, shown: Rows) -> int:
    if panel.mark == "cells":
        return shown.frame["y"].nunique() * (_lines(shown) * CELL_LINE + CELL_PADDING)
    if panel.mark == "ridge":
        return len(shown.series) * RIDGE_ROW + 2 * RIDGE_ROW
    if not shown.y_numeric:
        return max(shown.frame["y"].nunique(), 3) * CATEGORY_ROW
    return HEIGHT


def _least_width(panel: Panel, shown: Rows) -> int:
    """Cells are as wide as their text needs; everything else can shrink to a phone."""
    if panel.mark != "cells" or shown.frame.empty:
        return 0
    longest = max(len(line) for text in shown.frame["t"] for line in text.split("\n"))
    lines = (line for name in shown.frame["x"] for line in wrap(name, LINE_LENGTH))
    longest = max(longest, *map(len, lines))
    row_label = max(len(name) for name in shown.frame["y"])
    return shown.frame["x"].nunique() * (longest * 7 + 12) + row_label * 7 + 30


def _config(font: str, legend: bool) -> dict[str, Any]:
    ink = {"labelColor": "var(--label)", "titleColor": palette.INK}
    return {
        "font": font,
        "aria": False,  # the figure has one label; thousands of marks with theirs would drown it
        "view": {"stroke": None},
        "axis": {
            **ink,
            "domainColor": "var(--domain)",
            "tickColor": "var(--domain)",
            "tickSize": 4,
            "gridColor": "var(--grid)",
            "labelFontSize": 11.5,
            "labelPadding": 5,
            "labelLimit": 190,
            "titleFontSize": 12,
            "titleFontWeight": 500,
            "titlePadding": 9,
            "titleLimit": 420,
        },
        "axisX": {"grid": False, "labelFlush": True},
        "axisY": {"domain": False, "ticks": False},
        "legend": {
            **ink,
            "disable": not legend,
            "labelFontSize": 11.5,
            "titleFontSize": 12,
            "titleFontWeight": 500,
            "symbolOpacity": 1,
        },
        "title": {"color": palette.INK, "fontSize": 14, "fontWeight": 600},
        "text": {"color": palette.INK, "fontSize": 11.5},
        "line": {"strokeWidth": 1.9, "strokeJoin": "round"},
    }
