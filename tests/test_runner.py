"""The runner: nothing twice, nothing lost, trials after their start."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from batchlab.backends.base import Interrupted
from batchlab.backends.serial import Serial
from batchlab.jobs import Site
from batchlab.runner import run_all
from batchlab.spec import Cadence, Model, Phase, Spec, TrainSpec, TrialsSpec, UserError
from batchlab.store.database import Store


class Silent:
    """A progress that remembers what it heard."""

    def __init__(self) -> None:
        self.planned = 0  # jobs
        self.said: list[str] = []
        self.shares: dict[int, float] = {}

    def plan(self, weights: Sequence[float], said: str) -> None:
        assert said.startswith("plan: ")
        self.planned += len(weights)
        if weights:
            self.shares = dict.fromkeys(range(len(weights)), 0.0)

    def say(self, line: str) -> None:
        self.said.append(line)

    def advance(self, job: int, share: float) -> None:
        self.shares[job] += share

    def finish(self, job: int) -> None:
        # Other processes' last reports may come after their result, but never too many.
        assert self.shares[job] <= 1 + 1e-9


def digits(*phases: Phase, seed: int = 0) -> TrainSpec:
    return TrainSpec(
        workload="digits",
        model=Model(hidden=(8,)),
        schedule=phases,
        seed=seed,
        cadence=Cadence(every=2),
    )


def phase(size: int, rate: float = 0.05, epochs: int = 2) -> Phase:
    return Phase(batch_size=size, learning_rate=rate, epochs=epochs)


START = digits(phase(200))
TRIALS = TrialsSpec(start=START, batch_sizes=(4, 16), samples=32, draws=3, learning_rate=0.05)


def run(
    store: Store,
    specs: list[Spec],
    stopping: Callable[[], bool] = lambda: False,
) -> tuple[int, Silent]:
    progress = Silent()
    site = Site(store.root, None, "cpu", save_every_s=0.0)
    return run_all(specs, store, Serial(1), site, progress=progress, stopping=stopping), progress


def test_what_is_stored_is_not_run_again(tmp_path: Path) -> None:
    specs: list[Spec] = [digits(phase(100)), digits(phase(100), seed=1), digits(phase(100))]
    with Store(tmp_path) as store:
        assert run(store, specs)[0] == 2
        before = store.records([s.key for s in specs])
        again, progress = run(store, [*specs, digits(phase(100), seed=2)])
        assert again == 1
        assert progress.shares == {0: pytest.approx(1)}
        assert progress.planned == 1
        assert store.records([s.key for s in specs]).equals(before)


def test_trials_bring_their_start_and_keep_its_end(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        assert run(store, [TRIALS])[0] == 2
        assert store.keys() == {START.key, TRIALS.key}
        assert set(store.trials([TRIALS.key])["batch_size"]) == {4, 16}
        more = TRIALS.model_copy(update={"draws": 5})
        assert run(store, [more])[0] == 1


def test_a_start_that_was_stored_without_its_end_is_trained_again(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        run(store, [START])
        before = store.records([START.key])
        assert run(store, [TRIALS])[0] == 2
        assert store.records([START.key]).equals(before)
        assert len(store.runs()) == 2


def test_no_trials_from_a_diverged_start(tmp_path: Path) -> None:
    broken = digits(phase(10, rate=100, epochs=20))
    broken = broken.model_copy(update={"model": Model(hidden=(64, 64))})
    trials = TRIALS.model_copy(update={"start": broken})
    with Store(tmp_path) as store:
        done, progress = run(store, [trials, START])
        assert done == 2
        said = [line.partition(":")[0] for line in progress.said if "compiling" not in line]
        assert said == ["diverged", "left out"]
        assert not store.runs([trials.key])


def test_interrupted_between_and_within_runs(tmp_path: Path) -> None:
    specs: list[Spec] = [digits(phase(2, epochs=3), seed=s) for s in range(2)]
    looks = 0

    def stopping() -> bool:
        nonlocal looks
        looks += 1
        return looks == 5

    with Store(tmp_path / "halved") as store:
        with pytest.raises(Interrupted):
            run(store, specs, stopping=stopping)
        assert store.keys() == set()
        assert len(list((tmp_path / "halved" / "partial").iterdir())) == 1
        assert run(store, specs)[0] == 2
        assert not list((tmp_path / "halved" / "partial").iterdir())
        resumed = store.records([s.key for s in specs])
    with Store(tmp_path / "whole") as store:
        run(store, specs)
        assert store.records([s.key for s in specs]).equals(resumed)


def test_nothing_runs_where_a_spec_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("something ran")

    monkeypatch.setattr(Serial, "map", never)
    with Store(tmp_path) as store:
        with pytest.raises(UserError, match="larger than the 1437"):
            run(store, [START, digits(phase(5000))])
        with pytest.raises(UserError, match="unknown 'cifar'"):
            run(store, [START.model_copy(update={"workload": "cifar"})])
