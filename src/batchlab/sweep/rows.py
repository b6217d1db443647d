"""A run as a row of the journal, and rows as trials of the search."""

from collections.abc import Sequence
from itertools import groupby
from math import inf
from typing import Any

from batchlab.engine.target_run import Better, TargetRun
from batchlab.sweep.journal import Row
from batchlab.sweep.search import Trial


def as_row(run: TargetRun) -> dict[str, Any]:
    """For the journal, with every look: another target can be read from them later."""
    return {
        "outcome": run.outcome,
        "steps": run.steps,
        "samples": run.samples,
        "seconds": run.seconds,
        "looking_s": run.looking_s,
        "looks": [list(look) for look in run.looks],
    }


def as_trial(rows: Sequence[Row], target: float, better: Better) -> Trial:
    """For the search: the slowest of a rate's runs, which is the last where one did not arrive."""
    worst = rows[-1]
    if worst["outcome"] == "reached":
        worst = max(rows, key=lambda row: float(row["steps"]))
    values = [value for step, _, value in worst["looks"] if step]
    sign = 1 if better == "lower" else -1
    gap = min((sign * (v - target) for v in values), default=inf)
    return Trial(worst["rate"], worst["outcome"], worst["steps"], gap)


def by_rate(rows: Sequence[Row], target: float, better: Better) -> list[Trial]:
    """The search's trials among a batch size's rows, in order."""
    searched = [row for row in rows if row["kind"] == "search"]
    return [as_trial(list(group), target, better) for _, group in groupby(searched, _rate)]


def _rate(row: Row) -> float:
    return float(row["rate"])
