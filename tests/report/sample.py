"""A made-up report with everything in it: six studies, twelve listed claims, every mark."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from batchlab.record import Axis, Finding, Panel, Rule, Section, Table, Verdict

BATCH_SIZES = (1, 2, 3, 4, 5, 6, 7, 8, 16, 32, 64, 128, 256, 512, 1024)
CONVENTIONS = (
    "mean-frozen",
    "sum-frozen",
    "mean-stepping",
    "sum-stepping",
    "mean-last",
    "sum-last",
)
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

LISTED: tuple[tuple[str, str, str, str, Verdict, float, float, float, str], ...] = (
    (
        "accuracy",
        "large-batch-lower-accuracy",
        ("A larger batch ends at a lower test accuracy after the same number of epochs."),
        "0.98 at B = 64, 0.95 at B = 1024",
        "supported",
        0.0281,
        0.0252,
        0.0309,
        "accuracy at B = 64 less that at B = 1024",
    ),
    (
        "accuracy",
        "learning-rate-recovers",
        "A higher learning rate recovers the accuracy that the larger batch lost.",
        "0.98 with the rate ten times as high",
        "supported",
        0.0012,
        -0.0008,
        0.0031,
        "accuracy at B = 64 less that at B = 1024 with rate 0.1",
    ),
    (
        "switching",
        "switching-recovers",
        (
            "A large-batch start does not trap the model: a smaller batch or a "
            "higher rate later recovers the accuracy."
        ),
        "all three schedules end at 0.98",
        "supported",
        0.0004,
        -0.0011,
        0.0018,
        "largest shortfall from the control",
    ),
    (
        "norms",
        "gradient-norm-grows",
        ("For the same number of samples seen, larger batches make larger gradient steps."),
        "the squared norm is linear in B",
        "refuted",
        0.142,
        0.121,
        0.163,
        "exponent of the mean norm in B",
    ),
    (
        "norms",
        "relative-spread-grows",
        "At equal mean norm, larger batches have the larger spread of the norm.",
        "standard deviation grows with B",
        "supported",
        0.341,
        0.302,
        0.379,
        "exponent of the relative spread in B",
    ),
    (
        "norms",
        "norm-depends-on-draw",
        (
            "With large batches the norm depends strongly on which samples "
            "were drawn, with small ones weakly."
        ),
        "seen in the histograms of 1000 trials",
        "inconclusive",
        0.08,
        -0.21,
        0.37,
        "share of variance between draws, large less small",
    ),
    (
        "tails",
        "heavier-tail",
        "The distribution of gradient values has a heavier tail for larger batches.",
        "about 10⁵ values at B = 1024 against 10² at B = 2",
        "supported",
        1240.0,
        870.0,
        1760.0,
        "ratio of the counts beyond the abscissa",
    ),
    (
        "distance",
        "too-short-a-way",
        (
            "With a batch-averaged loss, large batches cannot travel far "
            "enough to the better solutions in the same epochs."
        ),
        "44.1 from the origin against 44.9",
        "supported",
        4.02,
        3.97,
        4.07,
        "distance W at B = 64 less that at B = 1024",
    ),
    (
        "distance",
        "compensation",
        ("A higher rate or more epochs lets a large batch reach the faraway solutions."),
        "W = 6.63 after 480 epochs",
        "supported",
        0.99,
        0.97,
        1.01,
        "distance with 480 epochs over that at B = 64",
    ),
    (
        "distance",
        "steps-limit-distance",
        ("For a fixed number of steps, SGD's distance is bounded independently of the batch size."),
        "W alike after as many steps",
        "inconclusive",
        0.031,
        -0.012,
        0.074,
        "exponent of the distance in B at equal steps",
    ),
    (
        "adam",
        "adam-larger-weights",
        "Adam finds solutions with much larger weights, and a lower test accuracy.",
        "W = 254.3 against 6.71; A = 0.95 against 0.98",
        "supported",
        37.9,
        36.2,
        39.6,
        "distance with Adam over that with SGD",
    ),
    (
        "adam",
        "sgd-keeps-the-initial-sphere",
        ("SGD stays near the initial radius and direction, Adam ignores the initialisation."),
        "cosines .988 .993 .928 against .124 .359 .153",
        "refuted",
        0.61,
        0.58,
        0.64,
        "cosine with SGD less that with Adam, first layer",
    ),
)
STUDIES = {
    "accuracy": (
        "Accuracy and batch size",
        ("Does a larger batch cost accuracy, and can a higher learning rate buy it back?"),
    ),
    "switching": (
        "Switching the batch size",
        ("Does a start with large batches trap the model where small ones cannot get it out?"),
    ),
    "norms": (
        "Gradient norms",
        ("How long is the gradient, and how much does its length vary, as the batch grows?"),
    ),
    "tails": (
        "Gradient values",
        ("Does the distribution of single gradient values have a heavier tail for larger batches?"),
    ),
    "distance": (
        "Distance travelled",
        "How far from its start does training go, in epochs and in steps?",
    ),
    "adam": ("Adam and SGD", "Where does Adam end, and what does it keep of the initialisation?"),
}


def finding(
    study: str = "accuracy",
    id: str = "a-claim",
    claim: str = "A claim.",
    article: str = "a number",
    verdict: Verdict = "supported",
    effect: float | None = 0.5,
    low: float | None = 0.4,
    high: float | None = 0.6,
    measure: str = "a difference",
    convention: str | None = None,
    listed: bool = True,
) -> Finding:
    return Finding(
        id=id,
        study=study,
        claim=claim,
        verdict=verdict,
        effect=effect,
        low=low,
        high=high,
        n=8,
        convention=convention,
        workload="digits",
        measure=measure,
        article=article,
        listed=listed,
        test="two-sided 95% interval, Student's t over seeds",
        reason="The interval lies wholly above zero; the difference exceeds one point of accuracy.",
    )


def findings() -> list[Finding]:
    turn: tuple[Verdict, ...] = ("refuted", "supported", "supported", "inconclusive")
    found = []
    for study, id, claim, article, verdict, effect, low, high, measure in LISTED:
        names: Sequence[str | None] = CONVENTIONS if study in ("norms", "tails") else (None,)
        for i, name in enumerate(names):
            found.append(
                finding(
                    study,
                    id,
                    claim,
                    article,
                    turn[i % 4] if i else verdict,
                    effect + i * (high - low),
                    low + i * (high - low),
                    high + i * (high - low),
                    measure,
                    name,
                )
            )
    extra = finding(
        "accuracy", "tiny-batch", "The smallest batch is the most accurate.", listed=False
    )
    return [*found, extra]


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
            id,
            title,
            question,
            (note,),
            tuple(f for f in found if f.study == id),
            panels[id],
            (table,) if id in ("accuracy", "adam") else (),
        )
        for id, (title, question) in STUDIES.items()
    ]
