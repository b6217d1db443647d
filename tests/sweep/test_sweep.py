"""Whole sweeps of a noisy quadratic: against theory, interrupted, in several processes."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from batchlab.backends.base import Backend, Interrupted
from batchlab.backends.processes import Processes
from batchlab.backends.serial import Serial
from batchlab.spec import UserError
from batchlab.sweep.journal import read
from batchlab.sweep.protocol import Asked, Place
from batchlab.sweep.result import Result
from batchlab.sweep.run import read_sweep, sweep
from tests.sweep import toy

PLACE = Place(f"{Path(toy.__file__)}:factory")
TARGET, SIZES = 0.05, (4, 16, 64, 256)
SHORT = Asked(target=0.2, budget=20_000, trials=4, seed=1)


class Heard:
    """What the sweep said and how far it came."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.shares: dict[int, float] = {}
        self.finished: list[int] = []

    def plan(self, weights: Sequence[float], said: str | None = None) -> None:
        self.lines.append(f"{len(weights)}: {said}")

    def say(self, line: str) -> None:
        self.lines.append(line)

    def advance(self, job: int, share: float) -> None:
        self.shares[job] = self.shares.get(job, 0.0) + share

    def finish(self, job: int) -> None:
        self.finished.append(job)


def run(
    out: Path,
    asked: Asked = SHORT,
    sizes: Sequence[int] = (16, 64),
    seeds: int = 2,
    backend: Backend | None = None,
    looks: int = 10**9,
    heard: Heard | None = None,
) -> Result:
    """A sweep that is stopped after so many looks at whether it should be."""
    left = iter(range(looks))
    return sweep(
        PLACE,
        asked,
        sizes,
        seeds,
        out,
        backend or Serial(1),
        heard or Heard(),
        lambda: next(left, None) is None,
    )


def kept(out: Path) -> dict[str, list[dict[str, Any]]]:
    """All rows by file, without the seconds."""
    timed = ("seconds", "looking_s")
    return {
        path.name: [{k: v for k, v in row.items() if k not in timed} for row in read(path)]
        for path in sorted(out.glob("*.jsonl"))
    }


def test_steps_follow_theory(tmp_path: Path) -> None:
    asked = Asked(target=TARGET, budget=20_000, trials=15, seed=0)
    done = run(tmp_path, asked, SIZES, seeds=3)
    for row in done.rows:
        # The first passage is before the mean's, the more so the noisier: the loss of a rate that
        # is too large for the mean comes down to the target by chance.
        best = toy.MODEL.best(TARGET, row.batch_size)
        assert 0.55 < row.steps.effect / best.steps < 1.25
        assert row.steps.low < row.steps.effect < row.steps.high
        assert row.rate is not None
        assert 0.4 < row.rate / best.rate < 2.5
        assert (row.reached, row.unreached, row.diverged, row.trials) == (3, 0, 0, 15)
        assert row.seconds.effect > 0
    for size, row in zip(SIZES[1:3], done.rows, strict=False):  # the next size's are not these
        assert not row.steps.effect / toy.MODEL.best(TARGET, size).steps < 1.25
    assert done.fit is not None
    best_steps = [toy.MODEL.best(TARGET, size).steps for size in SIZES]
    halved = best_steps[-1] * 2  # B_crit takes twice S_min
    assert done.fit.steps(done.fit.critical.effect).effect == pytest.approx(halved, rel=0.35)
    assert set(done.fastest) <= set(SIZES)


def test_an_interrupted_sweep_goes_on(tmp_path: Path) -> None:
    run(tmp_path / "whole")
    rounds = 0
    while True:
        try:
            again = run(tmp_path / "cut", looks=130)
            break
        except Interrupted:
            rounds += 1
            assert read_sweep(tmp_path / "cut").said
    assert rounds >= 2
    assert kept(tmp_path / "cut") == kept(tmp_path / "whole")
    assert again.rows == read_sweep(tmp_path / "cut").rows
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "cut").iterdir()}
    heard = Heard()
    run(tmp_path / "cut", heard=heard, looks=20)  # nothing is run again
    assert before == {p.name: p.stat().st_mtime_ns for p in (tmp_path / "cut").iterdir()}
    assert heard.shares == pytest.approx({0: 1.0, 1: 1.0})
    assert heard.finished == [0, 1]


def test_more_seeds_and_sizes_go_on_too(tmp_path: Path) -> None:
    run(tmp_path / "whole", seeds=3, sizes=(16, 64))
    run(tmp_path / "parts", seeds=2, sizes=(16,))
    done = run(tmp_path / "parts", seeds=3, sizes=(16, 64))
    assert kept(tmp_path / "parts") == kept(tmp_path / "whole")
    assert [row.steps.n for row in done.rows] == [3, 3]


def test_the_number_of_workers_makes_no_difference(tmp_path: Path) -> None:
    heard = Heard()
    run(tmp_path / "one")
    run(tmp_path / "two", backend=Processes(2, 1), heard=heard)
    assert kept(tmp_path / "one") == kept(tmp_path / "two")
    assert heard.shares == pytest.approx({0: 1.0, 1: 1.0})
    other = SHORT.model_copy(update={"seed": 2})
    run(tmp_path / "other", other)
    assert kept(tmp_path / "other") != kept(tmp_path / "one")


def test_a_derived_target_is_told_and_kept(tmp_path: Path) -> None:
    asked = SHORT.model_copy(update={"target": None})
    heard = Heard()
    first = run(tmp_path, asked, heard=heard)
    assert "no target given" in heard.lines[0]
    pilots = read(tmp_path / "pilot.jsonl")
    values = sorted(row["best"] for row in pilots)
    assert len(values) == 3
    assert {row["most"] for row in pilots} == {SHORT.budget // toy.SIZE // 4}
    assert json.loads((tmp_path / "sweep.json").read_text())["protocol"]["target"] == values[1]
    assert f"at most {values[1]:.6g}" in first.said
    assert "(what batch size 32 at the present rate sees in 1/4 of them)" in first.said
    again = Heard()
    run(tmp_path, asked, heard=again)
    assert "no target given" not in again.lines[0]
    (tmp_path / "sweep.json").unlink()  # as if it had been stopped before
    with pytest.raises(UserError, match=r"pilot.jsonl: of another sweep"):
        run(tmp_path, asked.model_copy(update={"budget": 10_000}))


def test_another_sweeps_folder_is_refused(tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(UserError, match=r"holds a sweep with trials 4, not 5"):
        run(tmp_path, SHORT.model_copy(update={"trials": 5}))
    with pytest.raises(UserError, match=r"holds a sweep with target 0.2, not None"):
        run(tmp_path, SHORT.model_copy(update={"target": None}))
    path = tmp_path / "batch-0000016.jsonl"
    path.write_text(path.read_text().replace('"rate": 0.0', '"rate": 0.1'))
    with pytest.raises(UserError, match=r"batch-0000016.jsonl: of another sweep"):
        run(tmp_path)
    (tmp_path / "sweep.json").write_text("{")
    with pytest.raises(UserError, match=r"sweep.json: not of a sweep"):
        run(tmp_path)
    with pytest.raises(UserError, match=r"no sweep"):
        read_sweep(tmp_path / "nowhere")


def test_what_is_not_reached_is_censored(tmp_path: Path) -> None:
    asked = Asked(target=1e-9, budget=640, trials=3, seed=0)
    done = run(tmp_path, asked)
    assert [(r.reached, r.unreached) for r in done.rows] == [(0, 2), (0, 2)]
    assert [r.cells()["steps"] for r in done.rows] == ["> 40", "> 10"]
    assert done.fit is None
    assert "two batch sizes that reached the target" in done.unfit
    assert done.fastest == ()
    json.dumps(done.json(), allow_nan=False)
