"""A made-up report with everything in it: six studies, twelve listed claims, every mark."""

import tomllib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from batchlab.record import Axis, Finding, Panel, Rule, Section, Table, Verdict

BATCH_SIZES = (1, 2, 3, 4, 5, 6, 7, 8, 16, 32, 64, 128, 256, 512, 1024)
# The headline's reading first. By the other five: verdict, effect, and what rules the claim out.
HEADLINE = "sum-stepping"
OTHERS: dict[str, tuple[Verdict, float, str | None]] = {
    "mean-frozen": ("refuted", -1.0, "frozen weights: the sum of the means falls as 1/B"),
    "sum-frozen": ("inconclusive", 0.0, "frozen weights: every batch size gives the same sum"),
    "mean-stepping": ("refuted", -0.9987, None),
    "mean-last": ("inconclusive", 0.012, None),
    "sum-last": ("supported", 0.5134, None),
}
META = {
    "title": "Batch size and training dynamics, measured again",
    "lead": (
        "Twelve findings of a 2018 article, each put to the test on real data with many seeds. "
        "Every verdict has an effect, a 95% interval and the number of independent runs."
    ),
    "workload": "digits",
    "seeds": "8",
    "scale": "smoke",
    "version": "0.1.0",
    "created": "2025-06-01 12:00 UTC",
}
RUNS = pd.DataFrame(
    {"key": ["a1", "b2"], "status": ["finished", "diverged"], "test_accuracy": [0.98, np.nan]}
)

MADE_UP = tomllib.loads(Path(__file__).with_name("sample.toml").read_text("utf-8"))


def finding(**given: Any) -> Finding:
    """A supported finding, but for what is given."""
    plain: dict[str, Any] = {
        "id": "a-claim",
        "study": "accuracy",
        "claim": "A claim.",
        "verdict": "supported",
        "effect": 0.5,
        "low": 0.4,
        "high": 0.6,
        "n": 8,
        "convention": None,
        "workload": "digits",
        "measure": "a difference",
        "test": "two-sided 95% interval, Student's t over seeds",
        "reason": "The interval lies wholly above zero; the effect exceeds one point of accuracy.",
        "article": "a number",
        "number": None,
    }
    return Finding(**(plain | given))


def readings(first: Finding) -> list[Finding]:
    """The finding under its own reading, and the claim under five others."""
    others = [
        replace(
            first,
            convention=name,
            verdict=verdict,
            effect=effect,
            low=effect - 0.02,
            high=effect + 0.02,
            reason=f"Made up for {name}.",
            cannot=cannot,
        )
        for name, (verdict, effect, cannot) in OTHERS.items()
    ]
    return [replace(first, convention=HEADLINE), *others]


def findings() -> list[Finding]:
    """The twelve, those on gradients under several readings, and two that are not in the list."""
    found = []
    for number, entry in enumerate(MADE_UP["finding"], 1):
        first = finding(number=number, **entry)
        several = first.study in ("norms", "tails")
        found += readings(first) if several else [first]
    # One claim that no identity touches, and that has no meaning for a last step.
    found = [
        replace(f, cannot=None) if f.id == "norm-depends-on-draw" else f
        for f in found
        if not (f.id == "norm-depends-on-draw" and f.convention in ("mean-last", "sum-last"))
    ]
    root = finding(
        id="norm-square-root",
        study="norms",
        claim="The mean gradient norm grows as the square root of the batch size.",
        verdict="refuted",
    )
    extra = finding(id="tiny-batch", claim="The smallest batch is the best.")
    return [*found, *readings(root), extra]


def line(id: str, ordered: bool = True, rows: int = 300) -> Panel:
    """Saturating curves with bands, one a batch size or a schedule."""
    names: Sequence[object] = (
        (4, 16, 64, 256, 1024) if ordered else ("control", "B 1024 to 64", "rate .01 to .1")
    )
    x = np.linspace(0, 30, rows)
    frames = [
        pd.DataFrame(
            {
                "series": name,
                "epoch": x,
                "accuracy": (y := 0.98 - 0.6 * np.exp(-x / (1 + 2 * i))),
                "low": y - 0.01 * (1 + i),
                "high": y + 0.01 * (1 + i),
            }
        )
        for i, name in enumerate(names)
    ]
    return Panel(
        id,
        "Test accuracy over training",
        "line",
        pd.concat(frames, ignore_index=True),
        Axis("epoch", "epoch"),
        Axis("accuracy", "test accuracy", format=".2f"),
        "Mean over 8 seeds with its 95% interval; the smaller the batch, the sooner the rise.",
        Axis("series", "batch size" if ordered else "schedule"),
        ordered,
        "low",
        "high",
        rules=(Rule("article, B = 64", y=0.98), Rule("switch", x=15.0)),
    )


def point(id: str, nominal: bool = False) -> Panel:
    """Norms by batch size on two log axes, early and late in training."""
    b = np.array(BATCH_SIZES, dtype=float)
    frames = [
        pd.DataFrame(
            {
                "regime": name,
                "B": BATCH_SIZES,
                "norm": (y := scale * b**power),
                "low": y * 0.9,
                "high": y * 1.1,
            }
        )
        for name, scale, power in (("early", 142.0, 0.14), ("late", 118.0, 0.08))
    ]
    frame = pd.concat(frames, ignore_index=True)
    if nominal:
        frame = frame.assign(B=frame["B"].map(lambda size: f"B = {size}"))
    axes = Axis("B", "batch size", log=True), Axis("norm", "mean gradient norm", log=True)
    return Panel(
        id,
        "Mean norm by batch size",
        "point",
        frame,
        *(axes[::-1] if nominal else axes),
        "Mean of 1000 trials of 1024 samples; bars are 95% intervals over 8 seeds.",
        Axis("regime", "regime"),
        False,
        "low",
        "high",
        rules=() if nominal else (Rule("√B would end here", y=400.0),),
    )


def ridge(id: str) -> Panel:
    """Densities that widen with the batch size."""
    x = np.linspace(-3, 3, 160)
    frames = [
        pd.DataFrame(
            {"B": size, "value": x, "height": np.exp(-(np.abs(x / (0.4 + 0.06 * i)) ** 1.3))}
        )
        for i, size in enumerate(BATCH_SIZES)
    ]
    return Panel(
        id,
        "Distribution of the norm, scaled to equal mean",
        "ridge",
        pd.concat(frames, ignore_index=True),
        Axis("value", "norm over its mean, in standard deviations at B = 32"),
        Axis("height", "density"),
        "One ridge a batch size, each to its own height; 1000 trials a ridge.",
        Axis("B", "batch size"),
        ordered=True,
        rules=(Rule("equal mean", x=0.0),),
    )


def cells(id: str) -> Panel:
    """A table of layers and runs."""
    rows = [
        (layer, run, value := 0.99 - 0.06 * i * j, f"{value:.3f}\n± 0.004\nn = 8")
        for i, layer in enumerate(("input", "hidden", "output"))
        for j, run in enumerate(("B 64", "B 1024", "B 1024, rate .1", "B 1024, 480 epochs", "Adam"))
    ]
    return Panel(
        id,
        "Cosine with the initial weights",
        "cells",
        pd.DataFrame(rows, columns=["layer", "run", "cosine", "text"]),
        Axis("run", "run"),
        Axis("layer", "layer"),
        "Mean over 8 seeds with half the width of the 95% interval.",
        Axis("cosine", "cosine similarity", format=".2f"),
        text="text",
    )


def sections() -> list[Section]:
    panels = {
        "accuracy": (line("accuracy"), point("accuracy-norms", nominal=True)),
        "switching": (line("switching", ordered=False), line("few", rows=12)),
        "norms": (point("norms"), line("norms-line"), ridge("norm-ridge")),
        "tails": (ridge("values"),),
        "distance": (line("distance"), point("distance-points")),
        "adam": (cells("cosines"),),
    }
    table = Table(
        "Ends of the runs",
        ("run", "A", "W", "b", "oW", "ob"),
        (
            ("B = 64", "0.981 [0.980, 0.982]", "6.71", "0.111", "44.9", "0.111"),
            ("B = 1024", "0.952 [0.951, 0.953]", "2.69", "0.0692", "44.1", "0.0692"),
        ),
        "Means over 8 seeds, n = 8 each.",
    )
    note = (
        "The article trains for 30 epochs with plain SGD. It names neither the initialisation nor "
        "the scaling of the inputs; both were inferred from its numbers."
    )
    found = findings()
    return [
        Section(
            id=study["id"],
            title=study["title"],
            question=study["question"],
            notes=(note,),
            findings=tuple(f for f in found if f.study == study["id"]),
            panels=panels[study["id"]],
            tables=(table,) if study["id"] in ("accuracy", "adam") else (),
        )
        for study in MADE_UP["study"]
    ]
