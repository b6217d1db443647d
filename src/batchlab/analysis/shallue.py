"""Reader of the measurements of Shallue et al. (2019), for those who have them.

"Measuring the Effects of Data Parallelism on Neural Network Training" (JMLR 20:112) published
every training curve of its searches:

    DATASET/MODEL/OPTIMIZER/BATCH_SIZE/study.json
    DATASET/MODEL/OPTIMIZER/BATCH_SIZE/TRIAL/metadata.json       "status": COMPLETE, ...
    DATASET/MODEL/OPTIMIZER/BATCH_SIZE/TRIAL/measurements.csv    step, val/classification_error, ...

A trial is one setting of the optimizer. Steps to result at a batch size are the fewest at which
any complete trial's validation error is first strictly below a goal; infeasible (diverged) trials
are left out. The authors' goals: 0.01 for the simple CNN on MNIST, 0.10 on Fashion MNIST, 0.30 for
ResNet-8 on CIFAR-10, 0.25 for ResNet-50 on ImageNet, 0.35 for VGG-11; a cross entropy of 3.9 on
LM1B.
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from batchlab.spec import UserError

ERROR = "val/classification_error"
_STATUSES: dict[str, str] = {
    "COMPLETE": "complete",
    "INCOMPLETE": "incomplete",
    "INFEASIBLE": "diverged",
}


def trials(workload: Path, goal: float, metric: str = ERROR) -> pd.DataFrame:
    """All trials of a workload (DATASET/MODEL/OPTIMIZER), a row each.

    batch_size, trial (its folder), status (complete, incomplete or diverged), steps to the first
    value of `metric` strictly below `goal`, or the last step measured (nan: none), and `outcome`:
    reached, unreached or diverged. Raises `UserError` for a folder of another layout, a file that
    is missing or damaged, naming it, and a metric that was not measured.
    """
    if not np.isfinite(goal):
        raise UserError(f"goal: a finite number is needed, not {goal}")
    if not workload.is_dir():
        raise UserError(f"no folder {workload}; DATASET/MODEL/OPTIMIZER of the data is needed")
    folders = {int(p.name): p for p in workload.iterdir() if p.is_dir() and p.name.isdigit()}
    if not folders:
        raise UserError(f"{workload}: no folder is named after a batch size")
    rows = []
    for size, folder in sorted(folders.items()):
        _json(folder / "study.json")
        inside = sorted((p for p in folder.iterdir() if p.is_dir()), key=_by_number)
        if not inside:
            raise UserError(f"{folder}: no trial")
        rows += [(size, path.name, *_trial(path, goal, metric)) for path in inside]
    return pd.DataFrame(rows, columns=["batch_size", "trial", "status", "steps", "outcome"])


def steps_to_result(frame: pd.DataFrame) -> pd.DataFrame:
    """Fewest steps of any complete trial, a row a batch size: what `trade_off.fit` takes.

    batch_size, seed (0: the search was made once), steps, outcome, and `complete`, how many trials
    the fewest is of. Where none reached the goal the outcome is unreached and steps the most tried;
    a size without a complete trial has diverged. `frame` is of `trials`.
    """
    rows = []
    for size, group in frame.groupby("batch_size"):
        complete = group[group["status"] == "complete"]
        reached = complete[complete["outcome"] == "reached"]["steps"]
        if len(reached):
            steps, outcome = float(reached.min()), "reached"
        elif len(complete):
            steps, outcome = float(complete["steps"].max()), "unreached"
        else:
            steps, outcome = np.nan, "diverged"
        rows.append((size, 0, steps, outcome, len(complete)))
    return pd.DataFrame(rows, columns=["batch_size", "seed", "steps", "outcome", "complete"])


def _trial(folder: Path, goal: float, metric: str) -> tuple[str, float, str]:
    """Status, steps and outcome."""
    path = folder / "metadata.json"
    metadata = _json(path)
    found = metadata.get("status") if isinstance(metadata, dict) else None
    if found not in _STATUSES:
        raise UserError(f"{path}: status must be one of {', '.join(_STATUSES)}, not {found!r}")
    status = _STATUSES[found]
    if status == "diverged":
        return status, np.nan, status
    step_N, value_N = _measurements(folder / "measurements.csv", metric)
    below = np.flatnonzero(value_N < goal)  # a nan is not
    if len(below):
        return status, float(step_N[below[0]]), "reached"
    return status, float(step_N[-1]) if len(step_N) else np.nan, "unreached"


def _measurements(path: Path, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps, increasing, and the metric at them (N each)."""
    try:
        table = pd.read_csv(path)
    except FileNotFoundError:
        raise UserError(f"{path}: missing") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a table ({_line(error)})") from None
    for name in ("step", metric):
        if name not in table.columns:
            there = ", ".join(str(column) for column in table.columns)
            raise UserError(f"{path}: no column {name!r}; there are {there}")
    try:
        step_N, value_N = (table[name].to_numpy(dtype=float) for name in ("step", metric))
    except ValueError as error:
        raise UserError(f"{path}: not a number ({_line(error)})") from None
    # A row cut off has no value; other rows may lack one of the metrics, and are left out.
    if len(table) and np.isnan(value_N[-1]):
        raise UserError(f"{path}: the last row has no {metric}: the file is cut off")
    if np.any(np.isnan(step_N)) or np.any(np.diff(step_N) <= 0):
        raise UserError(f"{path}: steps must increase from row to row")
    return step_N, value_N


def _json(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: missing") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not JSON ({_line(error)})") from None


def _line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _by_number(path: Path) -> tuple[int, str]:
    return (int(path.name) if path.name.isdigit() else -1, path.name)
