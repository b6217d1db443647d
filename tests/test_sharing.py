"""Runs that share stretches have the records, to the bit, that they have when trained alone."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from batchlab.backends import BACKENDS
from batchlab.backends.base import Interrupted, Wanted, limit_threads
from batchlab.backends.serial import Serial
from batchlab.engine.branch import branch
from batchlab.engine.data import load
from batchlab.engine.state import RunState
from batchlab.engine.train import train, train_together
from batchlab.jobs import Site
from batchlab.record import Record
from batchlab.runner import prepare, run_all
from batchlab.spec import Cadence, Model, Optimizer, Phase, Spec, TrainSpec, TrialsSpec
from batchlab.store.database import Store
from tests.test_runner import Silent

ADAM, HEAVY, PLAIN = Optimizer(name="adam"), Optimizer(momentum=0.9), Optimizer()


def phase(
    size: int,
    epochs: int | None = None,
    *,
    steps: int | None = None,
    rate: float = 0.01,
    **more: Any,
) -> Phase:
    return Phase(batch_size=size, learning_rate=rate, epochs=epochs, steps=steps, **more)


def spec(*phases: Phase, every: int = 1, steps: tuple[int, ...] = (), **more: Any) -> TrainSpec:
    given: dict[str, Any] = {"model": Model(hidden=(8,)), "seed": 0, **more}
    cadence = Cadence(every=every, steps=steps)
    return TrainSpec(workload="digits", schedule=phases, cadence=cadence, **given)


def family(optimizer: Optimizer) -> list[TrainSpec]:
    """Branches of one start: longer, at another batch size, rate or optimizer, differently told."""
    o: dict[str, Any] = {"optimizer": optimizer}
    other: dict[str, Any] = {"optimizer": HEAVY if optimizer == PLAIN else PLAIN}
    start = phase(200, 4, **o)
    return [
        spec(start, steps=(1, 2, 4, 8)),
        spec(phase(200, 9, **o), every=4, steps=(3, 8, 32, 70)),
        spec(phase(200, 2, **o), phase(200, 2, **o), phase(200, 5, **o), every=3),
        spec(start, phase(64, 2, **o), every=2),
        spec(start, phase(200, 3, rate=0.05, **o), every=5),
        spec(start, phase(200, 3, **other), every=3),
        spec(start, phase(200, steps=11, **o), phase(100, 2, **o), every=2),
        spec(start, phase(200, steps=11, **o), phase(100, 4, **o), every=3, steps=(35, 43)),
        spec(phase(200, 1, **o), phase(300, 2, **o), every=7),
        spec(start, seed=1),
    ]


def alone(specs: list[TrainSpec]) -> dict[str, tuple[str, int, list[Record]]]:
    limit_threads(1)
    data = load("digits", None, "cpu", "float32")
    ends = {s.key: train(s, data) for s in specs}
    return {k: (e.status, e.position.step, e.records) for k, e in ends.items()}


def stored(store: Store, specs: list[TrainSpec]) -> dict[str, tuple[str, int, list[Record]]]:
    runs = {run.key: run for run in store.runs([s.key for s in specs])}
    told = {}
    for key, run in runs.items():
        rows = store.records([key]).drop(columns="key").itertuples(index=False)
        told[key] = (run.status, run.steps, [Record(*row) for row in rows])
    return told


def run(
    there: Store,
    specs: Sequence[Spec],
    name: str = "serial",
    stopping: Callable[[], bool] = lambda: False,
    **site: Any,
) -> int:
    place = Site(**{"store": there.root, "data_dir": None, "device": "cpu", **site})
    backend = BACKENDS[name](Wanted(2, 1))
    return run_all(specs, there, backend, place, progress=Silent(), stopping=stopping)


@pytest.mark.parametrize("optimizer", [PLAIN, HEAVY, ADAM], ids=lambda o: o.name + str(o.momentum))
@pytest.mark.parametrize("name", ["serial", "processes"])
def test_the_same_as_alone(tmp_path: Path, name: str, optimizer: Optimizer) -> None:
    specs = family(optimizer)
    with Store(tmp_path) as store:
        assert run(store, specs, name) == len(specs)
        assert stored(store, specs) == alone(specs)
        assert run(store, specs, name) == 0
    assert not list((tmp_path / "partial").glob("*"))


def test_the_comparison_sees_a_lost_optimizer_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgetful(end: RunState, longer: TrainSpec, samples: int) -> RunState:
        begun = branch(end, longer, samples)
        begun.tensors = {k: v for k, v in begun.tensors.items() if k.startswith("model/")}
        return begun

    monkeypatch.setattr("batchlab.jobs.branch", forgetful)
    specs = family(HEAVY)
    with Store(tmp_path) as store:
        run(store, specs)
        assert stored(store, specs) != alone(specs)


def test_with_no_place_for_checkpoints(tmp_path: Path) -> None:
    specs = family(PLAIN)
    with Store(tmp_path) as store:
        run(store, specs, store=None)
        assert stored(store, specs) == alone(specs)
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("after", [3, 20, 33])
def test_interrupted_in_the_middle(tmp_path: Path, after: int) -> None:
    specs, looks = family(HEAVY), 0

    def stopping() -> bool:
        nonlocal looks
        looks += 1
        return looks % after == 0

    with Store(tmp_path) as store:
        for _ in range(100):
            try:
                run(store, specs, stopping=stopping, save_every_s=0.0)
            except Interrupted:
                continue
            break
        assert looks > after
        assert stored(store, specs) == alone(specs)
    assert not list((tmp_path / "partial").glob("*"))


@pytest.mark.parametrize("name", ["serial", "processes"])
def test_what_diverges_together(tmp_path: Path, name: str) -> None:
    wild: dict[str, Any] = {"model": Model(hidden=(64, 64))}
    calm, start = phase(200, 1), phase(10, 20, rate=100)
    specs = [
        spec(calm, start, steps=(1, 8, 9), **wild),
        spec(calm, start, phase(10, 5), every=2, steps=(2,), **wild),
        spec(calm, phase(10, 30, rate=100), every=3, **wild),
        spec(calm, phase(200, 2), **wild),
    ]
    trials = TrialsSpec(start=specs[1], batch_sizes=(4,), samples=16, draws=2, learning_rate=0.05)
    with Store(tmp_path) as store:
        assert run(store, [*specs, trials], name) == len(specs)
        told = stored(store, specs)
        assert told == alone(specs)
        assert [told[s.key][0] for s in specs] == ["diverged"] * 3 + ["finished"]
        assert not store.runs([trials.key])
        assert run(store, [*specs, trials], name) == 0


def test_a_later_run_goes_on_from_what_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []

    def counting(specs: list[TrainSpec], *rest: Any, tick: Any, **more: Any) -> list[RunState]:
        def both(steps: int) -> None:
            taken.append(steps * len(specs))
            tick(steps)

        return train_together(specs, *rest, tick=both, **more)

    monkeypatch.setattr("batchlab.jobs.train_together", counting)
    first, longer = family(PLAIN), spec(phase(200, 30), steps=(1, 64, 128))
    with Store(tmp_path) as store:
        run(store, first)
        shared, taken[:] = sum(taken), []
        assert shared == sum(s.steps for s in _plan(Store(tmp_path / "other"), first).stretches)
        assert shared < sum(s.step_count(1437) for s in first) / 2
        run(store, [longer])
        # The end of 4 epochs was kept, measured at every step the new run asks for up to there.
        assert sum(taken) == longer.step_count(1437) - 4 * 8
        assert stored(store, [longer]) == alone([longer])


def _plan(store: Store, specs: list[TrainSpec]) -> Any:
    with store:
        backend = Serial(1)
        return prepare(specs, store, backend, Site(store.root, None, "cpu")).plan


def test_a_damaged_checkpoint_is_made_again(tmp_path: Path) -> None:
    specs = family(PLAIN)
    longer = spec(phase(200, 30))
    with Store(tmp_path) as store:
        run(store, specs)
        for path in (tmp_path / "checkpoints").iterdir():
            path.write_bytes(path.read_bytes()[:100])
        run(store, [longer])
        assert stored(store, [longer]) == alone([longer])


def test_calibration_leaves_threads_and_generator_alone(tmp_path: Path) -> None:
    limit_threads(1)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    with Store(tmp_path) as store:
        costed = prepare(family(ADAM), store, Serial(2), Site(store.root, None, "cpu"))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == 1
    assert all(cost > 0 for cost in costed.costs)
    assert costed.seconds == pytest.approx(sum(costed.costs))
