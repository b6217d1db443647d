"""Every mark becomes a valid chart, drawn from the rows that its axes can show."""

import json
from dataclasses import replace

import altair as alt
import numpy as np
import pandas as pd
import pytest
from altair.utils.schemapi import SchemaValidationError

from batchlab.record import Axis, Panel, Rule
from batchlab.report import export
from batchlab.report.axes import log_ticks
from batchlab.report.figures import chart
from batchlab.report.palette import DARK, LIGHT, colours
from batchlab.report.rows import rows
from batchlab.report.specs import specs
from tests.report import sample

PANELS = {
    "line": sample.line("p", rows=40),
    "line, nominal": sample.line("p", ordered=False, rows=40),
    "line, few points": sample.line("p", rows=5),
    "line, no series": replace(sample.line("p", rows=5), series=None, low=None, high=None),
    "point": sample.point("p"),
    "point, categories": sample.point("p", nominal=True),
    "ridge": sample.ridge("p"),
    "cells": sample.cells("p"),
}
LOG = Panel(
    "log", "Log", "point",
    pd.DataFrame({"x": [0.0, 1.0, 2.0, 4.0, np.nan], "y": [1.0, -1.0, 10.0, 100.0, 1.0],
                  "low": [1.0, 1.0, -5.0, 90.0, 1.0], "high": [2.0, 2.0, 11.0, 110.0, 1.0]}),
    Axis("x", "x", log=True), Axis("y", "y", log=True), "", low="low", high="high",
)  # fmt: skip


@pytest.mark.parametrize("panel", PANELS.values(), ids=PANELS.keys())
def test_each_mark_is_a_valid_chart_that_vega_draws(panel: Panel) -> None:
    chart(panel).to_dict()  # checks against the schema
    made = specs(panel)
    svg, png = export.picture(made.file)
    assert "<path" in svg
    assert "var(--" not in svg
    assert png.startswith(b"\x89PNG")
    width, height = (int.from_bytes(png[at : at + 4], "big") for at in (16, 20))
    assert width >= 1000
    assert height >= 200
    page = json.loads(made.page)
    assert page["width"] == "container"
    assert page["background"] == "transparent"


def test_what_others_draw_is_checked_all_the_same() -> None:
    specs(LOG)
    with pytest.raises(SchemaValidationError):
        alt.Axis(tickCount="many")  # type: ignore[arg-type]


def test_log_axes_drop_what_they_cannot_show() -> None:
    shown = rows(LOG).frame
    assert shown["x"].tolist() == [2.0, 4.0]
    assert shown["low"].tolist() == [10.0, 90.0]  # an interval to below zero ends where y does


def test_log_axes_have_no_reference_line_at_zero() -> None:
    at = [replace(LOG, rules=(Rule("r", y=y),)) for y in (0.0, 50.0)]
    layers = [len(chart(panel).to_dict()["layer"]) for panel in at]
    assert layers[0] < layers[1]


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        (sample.BATCH_SIZES, [2**i for i in range(11)]),
        ([1e-4, 5.0], [1e-4, 1e-3, 1e-2, 1e-1, 1.0]),
        ([0.9, 7.0, 30.0], [1, 2, 5, 10, 20]),
        ([106.0, 390.0], [150, 200, 250, 300, 350]),
        ([3.0], [3]),
        ([], []),
    ],
)
def test_log_ticks(values: list[float], ticks: list[float]) -> None:
    assert log_ticks(pd.Series(values, dtype=float)) == pytest.approx(ticks)


def test_ridges_keep_the_frames_order_and_do_not_touch_their_heights() -> None:
    frame = pd.DataFrame({"s": ["b", "b", "a", "a"], "x": [0, 1, 0, 1], "y": [0.0, 1.0, 0.5, 0.0]})
    panel = Panel("r", "R", "ridge", frame, Axis("x", "x"), Axis("y", "y"), "", Axis("s", "s"))
    shown = rows(panel).frame
    assert shown["base"].tolist() == [1, 1, 0, 0]
    heights = (shown["y"] - shown["base"]).to_numpy()
    assert heights == pytest.approx(frame["y"].to_numpy() * heights[1])


def test_ordered_series_are_in_the_order_of_their_numbers() -> None:
    panel = sample.line("p", rows=3)
    shuffled = replace(panel, frame=panel.frame.iloc[::-1])
    assert rows(shuffled).series == ("4", "16", "64", "256", "1024")


def test_cells_without_a_number_are_drawn_too() -> None:
    panel = sample.cells("p")
    svg, _ = export.picture(specs(replace(panel, frame=panel.frame.assign(cosine=np.nan))).file)
    assert svg.count("± 0.004") == len(panel.frame)


@pytest.mark.parametrize(
    "panel",
    [
        replace(sample.ridge("p"), series=None),
        replace(sample.cells("p"), text=None),
        replace(sample.line("p"), low=None),
        replace(sample.cells("p"), rules=(Rule("r", x=1.0),)),
        replace(sample.ridge("p"), rules=(Rule("r", y=1.0),)),
    ],
)
def test_panels_that_lack_something_are_named(panel: Panel) -> None:
    with pytest.raises(ValueError, match="panel p: "):
        chart(panel)


def test_specs_hold_the_columns_shown_and_no_more() -> None:
    panel = sample.line("p", rows=40)
    made = specs(replace(panel, frame=panel.frame.assign(unused=1.23456789, epoch=1 / 3)))
    data = json.loads(made.page)["datasets"]["rows"]
    assert "0.333333," in data
    assert "1.2345" not in data
    assert "0.3333333" not in data


def test_colours() -> None:
    assert len(set(colours(15, ordered=True))) == 15
    assert len(set(colours(7, ordered=False))) == 7
    for scheme in (LIGHT, DARK):
        ground = _luminance(scheme["paper"])
        for name, colour in scheme.items():
            if name.startswith("ramp"):
                high, low = sorted((_luminance(colour), ground), reverse=True)
                assert (high + 0.05) / (low + 0.05) >= 2.8, name


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b
