"""Trials: all raw gradients are in the files, however often they were stopped; what is told."""

import shutil
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from batchlab.backends.base import Interrupted
from batchlab.engine.data import load
from batchlab.engine.trials import last_weight
from batchlab.jobs import Job, Site, execute
from batchlab.plan import make_plan
from batchlab.record import BinRecord, TrialRecord
from batchlab.store.checkpoints import Checkpoints
from batchlab.store.tensors import TensorFiles
from tests.test_runner import START, TRIALS

PASSES = 6
SPEC = TRIALS.model_copy(update={"draws": PASSES})
STRETCH, PIECE = make_plan([SPEC], {}, {}, lambda _: 1437).pieces


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """Where the run that the trials start from has ended."""
    here = Site(tmp_path / "store", None, "cpu", save_every_s=0.0)
    execute(Job((STRETCH,), here), lambda _: None)
    return here


def go_on(site: Site, tensors: Path | None, until: int = PASSES + 1) -> list[int]:
    """With the trials, until so many passes are done; what was reported, in passes."""
    told: list[int] = []

    def report(steps: int) -> None:
        told.append(steps * PASSES // PIECE.steps)
        if sum(told) >= until:
            raise Interrupted

    with suppress(Interrupted):
        execute(Job((PIECE,), replace(site, tensors=tensors)), report)
    return told


def gradients(root: Path) -> dict[str, npt.NDArray[np.float32]]:
    """Every one of them must be there."""
    told = {path.name: np.load(path) for path in root.glob("*.npy")}
    assert len(told) == len(SPEC.conventions)
    assert all(of.any(axis=(-2, -1)).all() for of in told.values())
    return told


def test_passes_done_without_the_files_are_done_again(site: Site, tmp_path: Path) -> None:
    mine, other = tmp_path / "mine", tmp_path / "other"
    assert go_on(site, mine, until=1) == [1]
    assert go_on(site, None, until=3) == [1, 1, 1]
    assert go_on(site, mine) == [1] * PASSES
    told = gradients(mine)
    assert go_on(site, other) == [1] * PASSES
    for name, of in gradients(other).items():
        np.testing.assert_array_equal(of, told[name])


def test_passes_in_the_files_are_not(site: Site, tmp_path: Path) -> None:
    assert go_on(site, tmp_path / "mine", until=2) == [1, 1]
    assert go_on(site, tmp_path / "mine") == [2, 1, 1, 1, 1]
    gradients(tmp_path / "mine")


def test_files_made_anew_by_one_that_was_killed(site: Site, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    go_on(site, mine, until=2)
    shutil.rmtree(mine)
    name, weight = last_weight(START, load("digits", None, "cpu", "float32"))
    TensorFiles(mine, SPEC, name, (weight.shape[0], weight.shape[1])).__exit__(KeyboardInterrupt)
    assert go_on(site, mine) == [1] * PASSES
    gradients(mine)


def test_the_files_are_synced_before_the_state(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    monkeypatch.setattr(TensorFiles, "sync", lambda _: done.append("files"))
    monkeypatch.setattr(Checkpoints, "save", lambda *_: done.append("state"))
    go_on(site, tmp_path / "mine", until=2)
    assert done == ["files", "state", "files", "state", "files"]


def test_what_was_measured_is_told_as_columns(site: Site) -> None:
    (outcome,) = execute(Job((PIECE,), site), lambda _: None)
    (ended,) = outcome.ended
    rows = [TrialRecord(*row) for row in ended.trials]
    sizes = Counter(row.batch_size for row in rows if row.name == "norm")
    assert sizes == dict.fromkeys(SPEC.batch_sizes, PASSES * len(SPEC.conventions))
    counted = sum(BinRecord(*row).frequency for row in ended.bins)
    weight = load("digits", None, "cpu", "float32").classes * START.model.hidden[-1]
    assert counted == weight * PASSES * len(SPEC.conventions) * len(SPEC.batch_sizes)
    assert len(ended.records) == 0
