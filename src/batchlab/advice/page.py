"""The advice as a page: the answer in facts, four figures, and what the branches gave."""

from math import inf, isfinite

import pandas as pd

from batchlab.advice.answer import Advice
from batchlab.analysis.intervals import Interval
from batchlab.record import Axis, Panel, Rule, Table
from batchlab.report.answer import Page
from batchlab.report.numbers import interval, number

SIZE = Axis("batch_size", "Batch size", log=True)
BEYOND = 10.0  # an unbounded end is drawn this far beyond the estimate, or the sizes


def page(advice: Advice) -> Page:
    """All that the page shows; the figures' intervals are 95%."""
    return Page(
        title=f"Batch size for {advice.name}",
        headline=advice.headline,
        tested=advice.tested,
        facts=tuple(_facts(advice)),
        panels=(_time(advice), _samples(advice), _noise(advice), _throughput(advice)),
        tables=tuple(_tables(advice)),
        notes=advice.notes,
        cover=(
            ("workload", advice.name),
            ("device", f"{advice.machine.device}, {advice.machine.threads} threads"),
            ("present setting", _present(advice)),
            *(
                (cost.stage, f"{cost.seconds:.1f} s, {cost.samples:,} samples")
                for cost in advice.costs
            ),
        ),
    )


def _present(advice: Advice) -> str:
    present = advice.present
    return (
        f"batch size {present.settings.batch_size}, learning rate {present.learning_rate:g}, "
        f"{number(present.steps.effect)} steps to {present.target}"
    )


def _facts(advice: Advice) -> list[tuple[str, str]]:
    """The answer's lines, name and text."""
    told: list[tuple[str, str]] = []
    for line in advice.lines()[1:]:
        if line.startswith("  ") and told:
            told[-1] = (told[-1][0], f"{told[-1][1]}; {line.strip()}")
        else:
            name, _, text = line.partition(": ")
            told.append((name, text))
    return [(name, text) for name, text in told if name not in ("note", "cost")]


def _here(advice: Advice) -> tuple[Rule, ...]:
    return (Rule("present", x=float(advice.present.settings.batch_size)),)


def _time(advice: Advice) -> Panel:
    rows = [
        (row.batch_size, row.seconds.effect, row.seconds.low, row.seconds.high)
        for row in advice.recommendation.prediction.rows
    ]
    return Panel(
        id="time",
        title="Time to the target",
        mark="line",
        frame=pd.DataFrame(rows, columns=["batch_size", "seconds", "low", "high"]),
        x=SIZE,
        y=Axis("seconds", "Seconds", log=True),
        low="low",
        high="high",
        rules=_here(advice),
        caption=f"Training alone, to {advice.present.target}; from the "
        f"{advice.recommendation.source} and the measured seconds a step.",
    )


def _samples(advice: Advice) -> Panel:
    told = advice.recommendation
    rows = [
        (row.batch_size, f"from the {told.source}", *_ends(row.samples))
        for row in told.prediction.rows
    ]
    if advice.tests is not None:
        base = advice.present.settings.batch_size
        least = advice.tuned.run.steps.effect * base
        rows.append((float(base), "measured on branches", least, least, least))
        for size, ratio in advice.tests.comparison.ratios.items():
            effect, low, high = _ends(ratio)
            measured = (least * effect, least * low, least * high)
            rows.append((size, "measured on branches", *measured))
    return Panel(
        id="samples",
        title="Samples to the target",
        mark="point",
        frame=pd.DataFrame(rows, columns=["batch_size", "source", "samples", "low", "high"]),
        x=SIZE,
        y=Axis("samples", "Samples", log=True, format="~s"),
        series=Axis("source", "Source"),
        low="low",
        high="high",
        rules=_here(advice),
        caption="On branches: samples to equal loss, times those that the present size needs.",
    )


def _noise(advice: Advice) -> Panel:
    run = advice.tuned.run
    rows: list[tuple[float, str, float, float, float]] = []
    for w in advice.windows:
        if isfinite(w.estimate.scale.effect):
            step = float(run.measured[(w.first + w.last) // 2])
            rows.append((step, f"noise scale ({run.kind})", *_ends(w.estimate.scale)))
    if advice.tests is not None:
        by_step = dict(zip(advice.tests.branches.steps, advice.tests.places, strict=True))
        for place, told in by_step.items():
            if told is not None:
                rows.append((float(place), "B_crit of the branches", *_ends(told.critical)))
    most = BEYOND * max(advice.throughput.size_J.tolist())
    rows = [(x, name, *(min(end, most) for end in ends)) for x, name, *ends in rows]
    return Panel(
        id="noise",
        title="Noise scale over training",
        mark="point",
        frame=pd.DataFrame(rows, columns=["step", "source", "noise", "low", "high"]),
        x=Axis("step", "Step of the run"),
        y=Axis("noise", "Samples", log=True),
        series=Axis("source", "Source"),
        low="low",
        high="high",
        caption="Windows of the run at the present size; an end without bounds is drawn at ten "
        "times the estimate.",
    )


def _throughput(advice: Advice) -> Panel:
    rows = []
    for size in advice.throughput.size_J.tolist():
        seconds = advice.throughput.at(size).seconds
        rows.append((size, size / seconds.effect, size / seconds.high, size / seconds.low))
    return Panel(
        id="throughput",
        title="Throughput",
        mark="point",
        frame=pd.DataFrame(rows, columns=["batch_size", "rate", "low", "high"]),
        x=SIZE,
        y=Axis("rate", "Samples a second", log=True, format="~s"),
        low="low",
        high="high",
        rules=_here(advice),
        caption=f"Whole training steps. {advice.machine.stopped[:1].upper()}"
        f"{advice.machine.stopped[1:]}.",
    )


def _tables(advice: Advice) -> list[Table]:
    rule = advice.rule
    told = Table(
        "Sizes",
        ("batch size", "learning rate", "steps", "samples", "seconds", "over the best"),
        tuple(
            (
                f"{row.batch_size:g}",
                number(rule.at(row.batch_size).effect),
                _text(row.steps),
                _text(row.samples),
                _text(row.seconds),
                _text(row.seconds_over),
            )
            for row in advice.recommendation.prediction.rows
        ),
        "To the target; the last column is of seconds.",
    )
    if advice.tests is None:
        return [told]
    branches = advice.tests.branches
    rows = tuple(
        (
            f"{branches.steps[b.place]:,}",
            str(b.batch_size),
            number(b.rate),
            str(b.seed),
            f"{b.samples[-1]:,}",
            number(b.losses[0]),
            number(b.last if b.last < inf else None),
        )
        for b in branches.runs
    )
    columns = ("from step", "batch size", "learning rate", "seed", "samples", "first", "last loss")
    return [told, Table("Branches", columns, rows, "Losses are on held-out data.")]


def _text(told: Interval) -> str:
    return interval(told.effect, told.low, told.high)


def _ends(told: Interval) -> tuple[float, float, float]:
    """Effect, low and high, drawable: an unbounded end lies far beyond."""
    high = told.high if told.high < inf else told.effect * BEYOND
    return told.effect, max(told.low, told.effect / BEYOND), high
