"""A panel as an Altair chart: one view, a layer for each thing drawn in it.

The chart names its data `rows` and holds none, which keeps it small and cheap to check against the
schema; `batchlab.report.specs` puts the rows in. Colours are the palette's names.
"""

from collections.abc import Callable
from json import dumps
from typing import Any, Final

import altair as alt
import pandas as pd

from batchlab.record import Axis, Mark, Panel
from batchlab.report import palette
from batchlab.report.axes import lying, x_axis, y_axis
from batchlab.report.rows import RIDGE_OVERLAP, Rows, rows

TIPS: Final = "tips"  # the layer that answers the pointer; files go without it
PICKED: Final = "picked"  # the labels picked in the legend; none means all

DIMMED = 0.12
BAND = 0.16
FEW_POINTS = 16  # a line with more points than this is drawn without them
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right")
DASHES = ([1, 0], [6, 3], [2, 2])

Layers = list[alt.Chart]


def chart(panel: Panel, shown: Rows | None = None) -> alt.LayerChart:
    """The panel drawn with its mark; `shown` saves working its rows out again.

    Raises `ValueError` where the panel lacks what its mark needs.
    """
    shown = shown or rows(panel)
    drawn = alt.LayerChart(layer=[*MARKS[panel.mark](panel, shown), *_rules(panel, shown)])
    # `add_params` would copy every layer, and take longer than all the rest.
    others: Any = () if drawn.params is alt.Undefined else drawn.params
    picked: Any = alt.param(name=PICKED, value=[]).param
    drawn.params = [*others, picked]
    return drawn


def _base(shown: Rows) -> alt.Chart:
    return alt.Chart(
        alt.NamedData("rows", format=alt.CsvDataFormat(type="csv", parse=shown.parse()))
    )


def _along(name: str, shown: Rows) -> "pd.Series[Any]":
    """All that is drawn along an axis, interval ends too."""
    ends = ["low", "high"] if "low" in shown.frame and name == shown.along else []
    drawn: pd.Series[Any] = pd.concat([shown.frame[column] for column in (name, *ends)])
    return drawn.dropna()


def _x(panel: Panel, shown: Rows) -> alt.X:
    return x_axis(panel.x, _along("x", shown), not shown.x_numeric)


def _y(panel: Panel, shown: Rows) -> alt.Y:
    return y_axis(panel.y, _along("y", shown), not shown.y_numeric, _lifted(panel))


def _lifted(panel: Panel) -> bool:
    return any(rule.x is not None for rule in panel.rules)


def _series(panel: Panel) -> Axis:
    assert panel.series is not None, "rows() has checked that"
    return panel.series


def _by_series(panel: Panel, shown: Rows, channel: Any, values: Any) -> Any:
    """The channel with one of the values for each series, in palette order."""
    scale = alt.Scale(domain=list(shown.series), range=list(values))
    return channel("s:N", title=_series(panel).title, scale=scale)


def _colour(panel: Panel, shown: Rows) -> Any:
    colours = palette.colours(max(len(shown.series), 1), panel.ordered)
    if not shown.series:
        return alt.ColorValue(colours[0])
    return _by_series(panel, shown, alt.Color, colours)


def _seen(shown: Rows, full: float = 1) -> dict[str, Any]:
    """Full opacity for the series picked in the legend, and for all while none is.

    As arguments of a value channel: handing them over ready saves Altair a search for the type.
    """
    if not shown.series:
        return {"value": full}
    test = f"!length({PICKED}) || indexof({PICKED}, datum.s) >= 0"
    return {"value": full * DIMMED, "condition": {"test": test, "value": full}}


def _tooltip(panel: Panel, shown: Rows, *more: tuple[str, str, str]) -> alt.TooltipValue:
    """What the pointer is told: an expression, for Vega-Lite's own forgets text in `nearest`.

    `more` are column, title and format of what else there is to tell.
    """
    told = [("s", _series(panel).title, "")] if shown.series else []
    told += [("x", panel.x.title, panel.x.format), ("y", panel.y.title, panel.y.format)]
    if "low" in shown.frame:
        along = panel.y if shown.along == "y" else panel.x
        told += [("low", "from", along.format), ("high", "to", along.format)]
    row = "(datum.datum || datum)"  # under `nearest`, the datum is the point near the pointer
    parse = shown.parse()
    said = {  # by title, for Vega takes no title twice
        title: f"format({row}.{name}, {dumps(form)})"
        if parse[name] == "number"
        else f"{row}.{name}"
        for name, title, form in (*told, *more)
    }
    pairs = ", ".join(f"{dumps(title)}: {value}" for title, value in said.items())
    return alt.TooltipValue({"expr": f"{{{pairs}}}"})


def _interval(shown: Rows, x: alt.X, y: alt.Y) -> dict[str, Any]:
    """The channels of a mark from `low` to `high`, on the same axis as what it is about."""
    start = (y if shown.along == "y" else x).copy(deep=False)
    start.shorthand = "low:Q"
    return {
        shown.along: start,
        f"{shown.along}2": (alt.Y2 if shown.along == "y" else alt.X2)("high"),
    }


def _line(panel: Panel, shown: Rows) -> Layers:
    x, y = _x(panel, shown), _y(panel, shown)
    base = _base(shown).encode(x=x, y=y, color=_colour(panel, shown))
    layers = []
    if "low" in shown.frame:
        band = alt.FillOpacityValue(**_seen(shown, BAND))
        ends = _interval(shown, x, y)
        layers.append(base.mark_area(strokeWidth=0).encode(**ends, fillOpacity=band))
    dashed = {}
    if len(shown.series) > palette.NOMINAL and not panel.ordered:
        turns = [i // palette.NOMINAL % len(DASHES) for i in range(len(shown.series))]
        dashes = [DASHES[turn] for turn in turns]
        dashed = {"strokeDash": _by_series(panel, shown, alt.StrokeDash, dashes)}
    seen = alt.OpacityValue(**_seen(shown))
    layers.append(base.mark_line().encode(opacity=seen, **dashed))
    if len(shown.frame) <= FEW_POINTS * max(len(shown.series), 1):
        layers.append(base.mark_circle(size=26).encode(opacity=seen))
    return [*layers, _tips(base, panel, shown)]


def _tips(base: alt.Chart, panel: Panel, shown: Rows) -> alt.Chart:
    """The point nearest to the pointer, seen only while it is."""
    near = alt.selection_point(
        name="near", on="pointerover", clear="pointerout", nearest=True, empty=False
    )
    shine = {"param": "near", "value": 1, "empty": False}
    tips: alt.Chart = (
        base.transform_filter("datum.tip === 1")
        .mark_point(size=70, filled=True, stroke=palette.PAPER, strokeWidth=1.5)
        .encode(opacity=alt.OpacityValue(0, condition=shine), tooltip=_tooltip(panel, shown))
        .add_params(near)
        .properties(name=TIPS)
    )
    return tips


def _point(panel: Panel, shown: Rows) -> Layers:
    x, y = _x(panel, shown), _y(panel, shown)
    base = _base(shown).encode(x=x, y=y, color=_colour(panel, shown))
    seen = alt.OpacityValue(**_seen(shown))
    layers = []
    if "low" in shown.frame:
        if shown.x_numeric and shown.y_numeric:  # an effect over a quantity: the eye wants the way
            faint = alt.StrokeOpacityValue(**_seen(shown, 0.45))
            layers.append(base.mark_line(strokeWidth=1).encode(strokeOpacity=faint))
        bars = base.mark_rule(strokeWidth=1.6)
        layers.append(bars.encode(**_interval(shown, x, y), opacity=seen))
    shape = {}
    if shown.series and not panel.ordered:
        shapes = [SHAPES[i % len(SHAPES)] for i in range(len(shown.series))]
        shape = {"shape": _by_series(panel, shown, alt.Shape, shapes)}
    points = base.mark_point(filled=True, size=58, stroke=palette.PAPER, strokeWidth=0.8)
    layers.append(points.encode(opacity=seen, tooltip=_tooltip(panel, shown), **shape))
    return layers


def _ridge(panel: Panel, shown: Rows) -> Layers:
    """Each ridge twice, back to front: a wide rim of paper, then itself with a fine outline.

    The rim sets it off from the one behind, the outline shows the tails however thin they are.
    """
    labels = list(dict.fromkeys(shown.frame["s"]))[::-1]
    rows_axis = alt.Axis(
        title=_series(panel).title,
        values=list(range(len(labels))),
        labelExpr=f"{dumps(labels)}[datum.value]",
        labelOverlap=False,
        grid=False,
        **lying(_lifted(panel)),
    )
    heights = [-0.15, max(len(labels) - 1, 0) + RIDGE_OVERLAP]  # the lowest rim clears the axis
    y = alt.Y("y:Q", axis=rows_axis, scale=alt.Scale(domain=heights, nice=False, zero=False))
    colours = palette.colours(len(labels), panel.ordered)
    fill = _by_series(panel, shown, alt.Color, colours).legend(None)
    rim = {"test": "datum.rim", "value": palette.PAPER}
    outline = _by_series(panel, shown, alt.Stroke, colours).legend(None).condition(rim)
    width = alt.StrokeWidthValue(0.8, condition={"test": "datum.rim", "value": 3.5})
    ridges = (
        _base(shown)
        .transform_calculate(rim="[true, false]")
        .transform_flatten(["rim"])
        .mark_area()
        .encode(
            x=_x(panel, shown), y=y, y2=alt.Y2("base"), detail=alt.Detail("rim:N"), color=fill,
            stroke=outline, strokeWidth=width, fillOpacity=alt.FillOpacityValue(1),
            tooltip=alt.Tooltip("s:N", title=_series(panel).title),
        )
    )  # fmt: skip
    return [ridges]


def _cells(panel: Panel, shown: Rows) -> Layers:
    series = _series(panel)
    y = alt.Y("y:N", sort=None, axis=alt.Axis(title=panel.y.title, grid=False))
    told = _tooltip(panel, shown, ("v", series.title, series.format))
    base = _base(shown).encode(x=_x(panel, shown), y=y, tooltip=told)
    scale = alt.Scale(scheme="viridis", type="log" if series.log else "linear", zero=False)
    unknown = {"test": "!isValid(datum.v)", "value": "var(--domain)"}
    # The number stands in the cell: a legend would take the width that a phone has for the text.
    colour = alt.Color("v:Q", scale=scale, legend=None, condition=unknown)
    ink = alt.ColorValue("#ffffff", condition={"test": "datum.dark === 1", "value": "#000000"})
    # The first of several lines stands on the middle: go up by half of the others.
    up = alt.ExprRef("-7 * (length(split(datum.t, '\\n')) - 1)")
    text = base.mark_text(lineBreak="\n", lineHeight=14, fontSize=11, dy=up)
    return [
        base.mark_rect(stroke=palette.PAPER, strokeWidth=2).encode(color=colour),
        text.encode(text=alt.Text("t:N"), color=ink),
    ]


def _rules(panel: Panel, shown: Rows) -> Layers:
    """Reference lines with their labels; a log axis has no place for some."""
    layers: Layers = []
    for rule in panel.rules:
        if rule.x is not None and not (panel.x.log and rule.x <= 0):
            # The label stands over the line and leans to where there is more room.
            left = not shown.x_numeric or rule.x <= shown.frame["x"].median()
            place = {"align": "left" if left else "right", "y": -4, "baseline": "bottom"}
            layers += _rule("x", rule.x, rule.label, place)
        if rule.y is not None and not (panel.y.log and rule.y <= 0):
            end = {"align": "right", "dy": -3, "baseline": "bottom"}
            layers += _rule("y", rule.y, rule.label, {**end, "x": {"expr": "width"}})
    return layers


def _rule(along: str, value: float, label: str, place: dict[str, Any]) -> Layers:
    at: dict[str, Any] = {along: (alt.XDatum if along == "x" else alt.YDatum)(value)}
    base = alt.Chart(alt.sequence(1)).encode(**at)
    text = {"text": label, "limit": {"expr": "width"}, **place}
    return [
        base.mark_rule(strokeDash=[4, 3], strokeWidth=1.2, color="var(--rule)"),
        base.mark_text(**text, stroke=palette.PAPER, strokeWidth=5, strokeJoin="round"),
        base.mark_text(**text, color="var(--rule)"),
    ]


MARKS: dict[Mark, Callable[[Panel, Rows], Layers]] = {
    "line": _line,
    "point": _point,
    "ridge": _ridge,
    "cells": _cells,
}
