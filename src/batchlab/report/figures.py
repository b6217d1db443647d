"""A panel as an Altair chart: one view, a layer for each thing drawn in it.

The chart names its data `rows` and holds none, which keeps it small and cheap to check against the
schema; `batchlab.report.specs` puts the rows in. Colours are the names of `batchlab.report.palette`.
"""

from collections.abc import Callable
from json import dumps
from typing import Any, Final

import altair as alt

from batchlab.record import Mark, Panel
from batchlab.report import palette
from batchlab.report.axes import categorical, quantitative
from batchlab.report.rows import RIDGE_OVERLAP, Rows, rows

TIPS: Final = "tips"  # the layer that answers the pointer; files go without it
PICKED: Final = "picked"  # the labels picked in the legend, all where there is none

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
    drawn = alt.layer(*MARKS[panel.mark](panel, shown), *_rules(panel, shown))
    # `add_params` would copy every layer, and take longer than all the rest.
    others = [] if drawn.params is alt.Undefined else drawn.params
    drawn.params = [*others, alt.param(name=PICKED, value=[]).param]
    return drawn


def _base(shown: Rows) -> alt.Chart:
    return alt.Chart(alt.NamedData("rows", format=alt.CsvDataFormat(type="csv", parse=shown.parse())))


def _axes(panel: Panel, shown: Rows) -> dict[str, Any]:
    frame = shown.frame
    return {
        "x": alt.X("x:Q", **quantitative(panel.x, frame["x"]))
        if shown.x_numeric
        else alt.X("x:N", **categorical(panel.x)),
        "y": alt.Y("y:Q", **quantitative(panel.y, frame["y"], upright=True))
        if shown.y_numeric
        else alt.Y("y:N", **categorical(panel.y, upright=True)),
    }


def _colour(panel: Panel, shown: Rows) -> alt.Color | alt.ColorValue:
    if panel.series is None:
        return alt.ColorValue(palette.colours(1, ordered=False)[0])
    domain = list(shown.series)
    scale = alt.Scale(domain=domain, range=palette.colours(len(domain), panel.ordered))
    return alt.Color("s:N", title=panel.series.title, scale=scale)


def _seen(shown: Rows, full: float = 1) -> dict[str, Any]:
    """Full opacity for the series picked in the legend, and for all while none is.

    As arguments of a value channel: handing them over ready saves Altair a search for the type.
    """
    if not shown.series:
        return {"value": full}
    test = f"!length({PICKED}) || indexof({PICKED}, datum.s) >= 0"
    return {"value": full * DIMMED, "condition": {"test": test, "value": full}}


def _tooltip(panel: Panel, shown: Rows) -> list[alt.Tooltip]:
    tips = [alt.Tooltip("s:N", title=panel.series.title)] if shown.series and panel.series else []
    fields = [("x", panel.x, shown.x_numeric), ("y", panel.y, shown.y_numeric)]
    for name, axis, numeric in fields:
        tip = {"title": axis.title, **({"format": axis.format} if axis.format and numeric else {})}
        tips.append(alt.Tooltip(f"{name}:{'Q' if numeric else 'N'}", **tip))
    if "low" in shown.frame:
        tips += [alt.Tooltip("low:Q", title="from"), alt.Tooltip("high:Q", title="to")]
    return tips


def _from(axis: alt.X | alt.Y) -> alt.X | alt.Y:
    """The same axis where an interval starts on it."""
    start = axis.copy(deep=False)
    start.shorthand = "low:Q"
    return start


def _line(panel: Panel, shown: Rows) -> Layers:
    base = _base(shown).encode(**_axes(panel, shown), color=_colour(panel, shown))
    layers = []
    if "low" in shown.frame:
        seen = alt.FillOpacityValue(**_seen(shown, BAND))
        ends = {"y": _from(base.encoding.y), "y2": alt.Y2("high")}
        layers.append(base.mark_area(strokeWidth=0).encode(**ends, fillOpacity=seen))
    dashed = {}
    if len(shown.series) > palette.NOMINAL and not panel.ordered:
        dashes = [DASHES[i // palette.NOMINAL % len(DASHES)] for i in range(len(shown.series))]
        scale = alt.Scale(domain=list(shown.series), range=dashes)
        dashed = {"strokeDash": alt.StrokeDash("s:N", title=panel.series.title, scale=scale)}
    seen = alt.OpacityValue(**_seen(shown))
    layers.append(base.mark_line().encode(opacity=seen, **dashed))
    if len(shown.frame) <= FEW_POINTS * max(len(shown.series), 1):
        layers.append(base.mark_circle(size=26).encode(opacity=seen))
    return [*layers, _tips(base, panel, shown)]


def _tips(base: alt.Chart, panel: Panel, shown: Rows) -> alt.Chart:
    near = alt.selection_point(
        name="near", on="pointerover", clear="pointerout", nearest=True, empty=False
    )
    shine = {"param": near.name, "value": 1, "empty": False}
    return (
        base.transform_filter("datum.tip === 1")
        .mark_point(size=70, filled=True, stroke=palette.PAPER, strokeWidth=1.5)
        .encode(opacity=alt.OpacityValue(0, condition=shine), tooltip=_tooltip(panel, shown))
        .add_params(near)
        .properties(name=TIPS)
    )


def _point(panel: Panel, shown: Rows) -> Layers:
    axes = _axes(panel, shown)
    base = _base(shown).encode(**axes, color=_colour(panel, shown))
    seen = alt.OpacityValue(**_seen(shown))
    layers = []
    if "low" in shown.frame:
        along = "y" if shown.y_numeric else "x"
        if shown.x_numeric and shown.y_numeric:  # an effect over a quantity: the eye wants the way
            faint = alt.StrokeOpacityValue(**_seen(shown, 0.45))
            layers.append(base.mark_line(strokeWidth=1).encode(strokeOpacity=faint))
        ends = {along: _from(axes[along]), f"{along}2": (alt.Y2 if along == "y" else alt.X2)("high")}
        layers.append(base.mark_rule(strokeWidth=1.6).encode(**ends, opacity=seen))
    shape = {}
    if shown.series and panel.series and not panel.ordered:
        shapes = [SHAPES[i % len(SHAPES)] for i in range(len(shown.series))]
        scale = alt.Scale(domain=list(shown.series), range=shapes)
        shape = {"shape": alt.Shape("s:N", title=panel.series.title, scale=scale)}
    points = base.mark_point(filled=True, size=58, stroke=palette.PAPER, strokeWidth=0.8)
    layers.append(points.encode(opacity=seen, tooltip=_tooltip(panel, shown), **shape))
    return layers


def _ridge(panel: Panel, shown: Rows) -> Layers:
    labels = list(dict.fromkeys(shown.frame["s"]))[::-1]
    assert panel.series is not None
    y_axis = alt.Axis(
        title=panel.series.title,
        values=list(range(len(labels))),
        labelExpr=f"{dumps(labels)}[datum.value]",
        labelOverlap=False,
        **{k: v for k, v in categorical(panel.y, upright=True)["axis"].to_dict().items()
           if k.startswith("title") and k != "title"},
    )
    top = max(len(labels) - 1, 0) + RIDGE_OVERLAP
    y = alt.Y("y:Q", axis=y_axis, scale=alt.Scale(domain=[0, top], nice=False, zero=False))
    base = _base(shown).encode(x=_axes(panel, shown)["x"], y=y, y2=alt.Y2("base"))
    area = base.mark_area(stroke=palette.PAPER, strokeWidth=1, line=False)
    return [
        area.encode(
            color=_colour(panel, shown).legend(None),
            fillOpacity=alt.FillOpacityValue(0.9),
            tooltip=alt.Tooltip("s:N", title=panel.series.title),
        )
    ]


def _cells(panel: Panel, shown: Rows) -> Layers:
    assert panel.series is not None
    plain = {"labelAngle": 0, "ticks": False, "domain": False, "grid": False}
    base = _base(shown).encode(
        x=alt.X("x:N", sort=None, axis=alt.Axis(title=panel.x.title, **plain)),
        y=alt.Y("y:N", sort=None, axis=alt.Axis(title=panel.y.title, **plain)),
        tooltip=[
            alt.Tooltip("x:N", title=panel.x.title),
            alt.Tooltip("y:N", title=panel.y.title),
            alt.Tooltip("v:Q", title=panel.series.title),
        ],
    )
    scale = alt.Scale(scheme="viridis", type="log" if panel.series.log else "linear", zero=False)
    legend = alt.Legend(title=panel.series.title, format=panel.series.format or "~g")
    unknown = {"test": "!isValid(datum.v)", "value": "var(--domain)"}
    colour = alt.Color("v:Q", scale=scale, legend=legend, condition=unknown)
    ink = alt.ColorValue("#ffffff", condition={"test": "datum.dark === 1", "value": "#000000"})
    return [
        base.mark_rect(stroke=palette.PAPER, strokeWidth=2).encode(color=colour),
        base.mark_text(lineBreak="\n", fontSize=11).encode(text="t:N", color=ink),
    ]


def _rules(panel: Panel, shown: Rows) -> Layers:
    """Reference lines, each with its label in a halo; a log axis has no place for some."""
    layers: Layers = []
    for rule in panel.rules:
        if rule.x is not None and not (panel.x.log and rule.x <= 0):
            middle = shown.frame["x"].median() if shown.x_numeric else rule.x
            left = rule.x <= middle
            end = {"align": "left" if left else "right", "dx": 4 if left else -4}
            layers += _rule("x", rule.x, rule.label, {**end, "y": 0, "baseline": "top"})
        if rule.y is not None and not (panel.y.log and rule.y <= 0):
            end = {"align": "right", "dy": -3, "baseline": "bottom"}
            layers += _rule("y", rule.y, rule.label, {**end, "x": {"expr": "width"}})
    return layers


def _rule(along: str, value: float, label: str, place: dict[str, Any]) -> Layers:
    at = {along: alt.datum(value)}
    limit = {"expr": "width"}
    base = alt.Chart(alt.sequence(1))
    return [
        base.mark_rule(strokeDash=[4, 3], strokeWidth=1.2, color="var(--rule)").encode(**at),
        base.mark_text(
            text=label, stroke=palette.PAPER, strokeWidth=4, limit=limit, **place
        ).encode(**at),
        base.mark_text(text=label, color="var(--rule)", limit=limit, **place).encode(**at),
    ]


MARKS: dict[Mark, Callable[[Panel, Rows], Layers]] = {
    "line": _line,
    "point": _point,
    "ridge": _ridge,
    "cells": _cells,
}
