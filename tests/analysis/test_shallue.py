"""The reader of published curves, on folders in their layout, whole and damaged."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from batchlab.analysis.shallue import steps_to_result, trials
from batchlab.analysis.trade_off import fit
from batchlab.spec import UserError

HEADER = "step,train/classification_error,val/classification_error,test/classification_error\n"
GOAL = 0.1


def write(
    root: Path,
    size: int,
    trial: int,
    errors: Sequence[float],
    status: str = "COMPLETE",
    every: int = 10,
) -> Path:
    """A trial whose validation error was `errors` at steps 0, `every`, 2 `every`..."""
    folder = root / str(size) / str(trial)
    folder.mkdir(parents=True)
    (root / str(size) / "study.json").write_text("{}")
    (folder / "metadata.json").write_text(json.dumps({"status": status}))
    rows = (f"{i * every},0.0,{error},0.0\n" for i, error in enumerate(errors))
    (folder / "measurements.csv").write_text(HEADER + "".join(rows))
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Batch size 2 is reached by two of five trials, 16 by none, 128 has none that is complete."""
    root = tmp_path / "mnist" / "simple_cnn" / "sgd"
    write(root, 2, 1, [0.9, 0.2, 0.09, 0.2, 0.05])
    write(root, 2, 2, [0.9, 0.1, 0.1, 0.08])  # at the goal is not below it
    write(root, 2, 3, [0.9, 0.05], status="INFEASIBLE")
    write(root, 2, 4, [0.9, 0.05], status="INCOMPLETE")
    write(root, 2, 10, [0.9, 0.8])
    write(root, 16, 1, [0.9, 0.5, 0.4])
    write(root, 16, 2, [0.9, 0.5])
    write(root, 128, 1, [], status="INFEASIBLE")
    return root


def test_steps_to_result(root: Path) -> None:
    frame = trials(root, GOAL)
    two = frame[frame["batch_size"] == 2]
    assert two["trial"].tolist() == ["1", "2", "3", "4", "10"]
    assert two["steps"].fillna(-1).tolist() == [20, 30, -1, 10, 10]
    assert two["outcome"].tolist() == ["reached", "reached", "diverged", "reached", "unreached"]
    told = steps_to_result(frame)
    assert told["batch_size"].tolist() == [2, 16, 128]
    assert told["steps"].fillna(-1).tolist() == [20, 20, -1]
    assert told["outcome"].tolist() == ["reached", "unreached", "diverged"]
    assert told["complete"].tolist() == [3, 2, 0]


def test_a_hyperbola_comes_through(tmp_path: Path) -> None:
    for size in (8, 32, 128, 512):
        need = round(100 * (1 + 100 / size))
        for trial in (1, 2):
            errors = [0.9] * (need * trial) + [0.05]
            write(tmp_path, size, trial, errors, every=1)
    told = fit(steps_to_result(trials(tmp_path, GOAL)))
    assert told.critical.effect == pytest.approx(100, rel=0.02)
    assert told.least_steps.effect == pytest.approx(100, rel=0.02)
    assert told.misfit.verdict == "untested"


def test_another_metric(root: Path) -> None:
    assert (trials(root, 0.5, "train/classification_error")["steps"].dropna() == 0).all()
    with pytest.raises(UserError, match=r"measurements.csv: no column 'val/cross_entropy_error'"):
        trials(root, 0.5, "val/cross_entropy_error")


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("metadata.json", None, "metadata.json: missing"),
        ("metadata.json", '{"status": "COMP', "metadata.json: not JSON"),
        ("metadata.json", '{"status": "DONE"}', "not 'DONE'"),
        ("metadata.json", "[]", "not None"),
        ("measurements.csv", None, "measurements.csv: missing"),
        ("measurements.csv", "", "measurements.csv: not a table"),
        ("measurements.csv", HEADER + "0,0.1,0.9,0.1\n10,0.1", "cut off"),
        ("measurements.csv", HEADER + "0,0.1,0.9,0.1\n10,0.1,0.1x,0.2\n", "not a number"),
        ("measurements.csv", HEADER + "10,0,0.9,0\n0,0,0.8,0\n", "increase"),
        ("measurements.csv", HEADER + '0,0,"0.9,0\n', "not a table"),
        ("../study.json", "{", "study.json: not JSON"),
        ("../study.json", None, "study.json: missing"),
    ],
)
def test_damaged_files_are_named_in_one_line(
    root: Path, file: str, content: str | None, says: str
) -> None:
    path = root / "2" / "1" / file
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=says) as caught:
        trials(root, GOAL)
    assert "\n" not in str(caught.value)


def test_a_truncated_binary_file(root: Path) -> None:
    for name in ("measurements.csv", "metadata.json"):
        (root / "2" / "1" / name).write_bytes(b"step\xff\xfe\x00")
        with pytest.raises(UserError, match=name):
            trials(root, GOAL)


def test_other_folders(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folder"):
        trials(tmp_path / "nowhere", GOAL)
    with pytest.raises(UserError, match="no folder is named after a batch size"):
        trials(root.parent, GOAL)
    (root / "64").mkdir()
    (root / "64" / "study.json").write_text("{}")
    with pytest.raises(UserError, match="no trial"):
        trials(root, GOAL)
    with pytest.raises(UserError, match="goal"):
        trials(root, np.nan)
