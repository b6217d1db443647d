"""What every study is: a question, the runs it needs, what they say and what to draw."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from batchlab.analysis.intervals import Condition, Interval, deciding, mean_interval, together
from batchlab.record import (
    ALL,
    BIASES,
    WEIGHTS,
    Axis,
    Finding,
    Panel,
    Section,
    Table,
)
from batchlab.spec import Protocol, Spec
from batchlab.studies.article import FINDINGS, POINT, ArticleRun
from batchlab.studies.results import Arm, Results

EPOCHS = Axis("epoch", "Epoch")
STEPS = Axis("step", "Step", log=True)
ACCURACY_START = 0.8
BELOW_START = f"Points below {ACCURACY_START} are left out."
T_TEST = "Student's t interval, 95%, over seeds"
PAIRED = "Student's t interval, 95%, of differences paired by seed"
PAIRED_RATIO = "Student's t interval, 95%, of log ratios (accuracies: differences) paired by seed"


class Study(ABC):
    """A question. It says which runs it needs and what their records say; it never runs them."""

    id: str
    title: str
    question: str

    @abstractmethod
    def arms(self, protocol: Protocol) -> dict[str, Arm]:
        """The training runs, by role; each is run with every seed."""

    def specs(self, protocol: Protocol, seeds: int) -> list[Spec]:
        """All runs of the study."""
        arms = self.arms(protocol).values()
        return [a.spec(protocol, seed) for seed in range(seeds) for a in arms]

    @abstractmethod
    def findings(self, results: Results) -> list[Finding]:
        """What the records say of the article's claims."""

    @abstractmethod
    def panels(self, results: Results) -> list[Panel]:
        """What to draw."""

    @abstractmethod
    def tables(self, results: Results) -> list[Table]:
        """The numbers, the article's beside ours."""

    def notes(self, results: Results) -> list[str]:  # noqa: ARG002
        """What a reader must know beside the question."""
        return []

    def section(self, results: Results) -> Section:
        """All that the page shows of the study."""
        return Section(
            id=self.id,
            title=self.title,
            question=self.question,
            notes=tuple(self.notes(results)),
            findings=tuple(self.findings(results)),
            panels=tuple(self.panels(results)),
            tables=tuple(self.tables(results)),
        )

    def finding(
        self,
        results: Results,
        id: str,
        conditions: Sequence[Condition],
        *,
        measure: str,
        article: str,
        test: str = PAIRED,
        claim: str | None = None,
        convention: str | None = None,
        effect: Interval | None = None,
        cannot: str | None = None,
    ) -> Finding:
        """A finding whose verdict is that of all its conditions together.

        The effect shown is that of the condition that decides, unless another is given; where it
        is not the first one, its own words take the place of `measure`. A claim that is not of
        the article's list brings its own words.
        """
        conditions = together(conditions, len(results.seeds))
        decisive = deciding(conditions)
        if effect is None and decisive is not conditions[0]:
            measure = decisive.says
        shown = effect or decisive.interval
        return Finding(
            id=id,
            study=self.id,
            claim=claim or FINDINGS[id],
            verdict=decisive.verdict,
            effect=shown.effect if np.isfinite(shown.effect) else None,
            low=shown.low if np.isfinite(shown.low) else None,
            high=shown.high if np.isfinite(shown.high) else None,
            n=shown.n,
            convention=convention,
            workload=results.protocol.workload,
            measure=measure,
            test=test,
            reason="; ".join(str(c) for c in conditions),
            article=article,
            number=list(FINDINGS).index(id) + 1 if id in FINDINGS else None,
            cannot=cannot,
        )


def recovers(results: Results, arm: Arm, reference: Arm) -> Condition:
    """The arm's test accuracy is within one point of the reference's, or above it."""
    return Condition(
        f"accuracy of {arm.label} minus that of {reference.label} is above {-POINT:g}",
        results.difference(arm, reference, "test_accuracy"),
        above=-POINT,
    )


def curve_panels(
    results: Results, arms: Sequence[Arm], stem: str, x: Axis, *, ordered: bool
) -> list[Panel]:
    """Train accuracy, test accuracy and generalisation gap along the arms."""
    titles = {
        "train_accuracy": "Train accuracy",
        "test_accuracy": "Test accuracy",
        "gap": "Generalisation gap",
    }
    return [
        line_panel(
            results,
            arms,
            f"{stem}-{name.replace('_', '-')}-{x.field}",
            name,
            title,
            x,
            heading=f"{title}, by {x.title.lower()}",
            ordered=ordered,
        )
        for name, title in titles.items()
    ]


def line_panel(
    results: Results,
    arms: Sequence[Arm],
    id: str,
    name: str,
    title: str,
    x: Axis,
    *,
    heading: str = "",
    layer: str = ALL,
    ordered: bool = False,
    log: bool = False,
    last_epochs: int | None = None,
    says: str = "",
) -> Panel:
    """One quantity along the arms, mean and interval over seeds.

    `title` is the quantity's, and the panel's where it has no `heading`. `last_epochs` shows only
    so many epochs before each arm's end, counted from there, as the article draws its switching
    runs.
    """
    frame = results.band(arms, name, layer)
    if last_epochs is not None:
        frame["epoch"] -= frame.groupby("arm")["epoch"].transform("max") - last_epochs
        frame = frame[frame["epoch"] >= 0]
    if x.log:
        frame = frame[frame[x.field] > 0]
    if name.endswith("accuracy") and frame["mean"].max() > (1 + ACCURACY_START) / 2:
        # Runs are told apart by their last percents; the way up to there would squeeze these.
        frame = frame[frame["mean"] >= ACCURACY_START]
        frame = frame.assign(low=frame["low"].clip(lower=ACCURACY_START))
        says = f"{says or title + ' against ' + x.title.lower() + '.'} {BELOW_START}"
    return Panel(
        id=id,
        title=heading or title,
        mark="line",
        frame=frame,
        x=x,
        y=Axis("mean", title, log=log),
        series=Axis("arm", "Run"),
        ordered=ordered,
        low="low",
        high="high",
        caption=(
            f"{says or title + ' against ' + x.title.lower() + '.'} "
            f"Mean and 95% interval over n = {_seeds(frame)} seeds."
        ),
    )


def _seeds(frame: pd.DataFrame) -> str:
    """How many seeds are behind a band: fewer where runs diverged."""
    least, most = int(frame["n"].min()), int(frame["n"].max())
    return f"{most}" if least == most else f"{least} to {most}"


def number(interval: Interval, digits: int = 2) -> str:
    """`mean ± half-width` to the half-width's leading digits, or the mean of a single seed."""
    if not np.isfinite(interval.effect):
        return "–"
    half = interval.high - interval.effect
    if not np.isfinite(half) or half <= 0:
        return f"{interval.effect:.4g}"
    places = max(0, digits - 1 - int(np.floor(np.log10(half))))
    return f"{interval.effect:.{places}f} ± {half:.{places}f}"


def article_table(results: Results, rows: Mapping[Arm, ArticleRun | None]) -> Table:
    """Distances, accuracy and cosines of each arm, the article's number in front of ours."""
    names = {
        "A": ("test_accuracy", ALL),
        "train_A": ("train_accuracy", ALL),
        "W": ("distance", WEIGHTS),
        "b": ("distance", BIASES),
        "oW": ("norm", WEIGHTS),
        "ob": ("norm", BIASES),
    }
    layers = results.layers()
    columns = ["Run"]
    columns += [f"{c.replace('_', ' ')} {who}" for c in names for who in ("article", "here")]
    columns += [f"cos {who}" for who in ("article", "here")] + ["n", "diverged"]
    body = []
    for one, said in rows.items():
        cells = [one.label]
        for column, (name, layer) in names.items():
            theirs = None if said is None else getattr(said, column)
            cells += ["–" if theirs is None else f"{theirs:g}"]
            cells += [number(mean_interval(results.final(one, name, layer)))]
        theirs = None if said is None else said.cos
        cells += ["–" if theirs is None else " ".join(f"{c:.3f}" for c in theirs)]
        ours = [mean_interval(results.final(one, "cosine", layer)) for layer in layers]
        cells += [" ".join(f"{i.effect:.3f}" if np.isfinite(i.effect) else "–" for i in ours)]
        runs = int(np.isfinite(results.final(one, "test_accuracy")).sum())
        body.append((*cells, str(runs), str(results.diverged(one))))
    return Table(
        title="Beside the article",
        columns=tuple(columns),
        rows=tuple(body),
        caption=(
            "A: test accuracy, train A: on the training data; W, b: distance of all weights and "
            "biases from their initial values; oW, ob: from the origin; cos: cosine with the "
            "initial weights, from the input layer to the output layer. The article's numbers are "
            f"its single MNIST runs; ours on {results.protocol.workload} are means ± half of the "
            "95% interval over n seeds."
        ),
    )
