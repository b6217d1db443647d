"""Shallue et al.'s published searches as the same table and trade-off."""

from math import inf
from pathlib import Path

from batchlab.analysis.intervals import Interval
from batchlab.analysis.shallue import ERROR, steps_to_result, trials
from batchlab.spec import UserError
from batchlab.sweep.result import UNKNOWN, Result, Row, curve


def published(folder: Path, goal: float | None, metric: str = ERROR) -> Result:
    """Of DATASET/MODEL/OPTIMIZER of their data; raises `UserError` where a file is damaged.

    There is one search a batch size and no repetition, so no interval of steps, and seconds were
    not published in a comparable form.
    """
    if goal is None:
        raise UserError("--target: the goal that the error is to be below is needed, like 0.01")
    every = trials(folder, goal, metric)
    frame = steps_to_result(every)
    rows = []
    for size, outcome, steps in frame[["batch_size", "outcome", "steps"]].itertuples(index=False):
        tried = every[every["batch_size"] == size]["outcome"]
        rows.append(
            Row(
                batch_size=int(size),
                rate=None,
                edge="",
                steps=_fewest(outcome, steps),
                samples=_fewest(outcome, steps * size),
                seconds=UNKNOWN,
                reached=int(outcome == "reached"),
                unreached=int(outcome == "unreached"),
                diverged=int(outcome == "diverged"),
                trials=len(tried),
                trials_diverged=int((tried == "diverged").sum()),
            )
        )
    said = f"{folder}: fewest steps to {metric} below {goal:g}, of one search a batch size"
    return curve(said, tuple(rows), frame)


def _fewest(outcome: str, value: float) -> Interval:
    """A value without an error; more than it where the goal was not reached."""
    if outcome == "diverged":
        return UNKNOWN
    return Interval(value, -inf, inf, 1) if outcome == "reached" else Interval(inf, value, inf, 0)
