"""The calibration: costs that grow with the work, whatever becomes of the cut run."""

import time

import pytest

from batchlab import calibrate as calibrate_module
from batchlab.calibrate import calibrate
from batchlab.lockstep import Group
from batchlab.plan import Plan, make_plan
from batchlab.spec import Cadence, Model, Optimizer, Phase, Spec, TrainSpec, TrialsSpec

SAMPLES = 1437


def spec(size: int, epochs: int, *, rate: float = 0.01, every: int = 1, **more: str) -> TrainSpec:
    phase = Phase(
        batch_size=size,
        learning_rate=rate,
        epochs=epochs,
        optimizer=Optimizer(**more),  # type: ignore[arg-type]
    )
    return TrainSpec(
        workload="digits",
        model=Model(hidden=(64, 64)),
        schedule=(phase,),
        seed=0,
        cadence=Cadence(every=every),
    )


def alone(made: Plan) -> list[Group]:
    return [(index,) for index in range(len(made.pieces))]


def plan(*specs: Spec) -> Plan:
    return make_plan(specs, {}, {}, lambda _: SAMPLES)


def costs(*specs: Spec) -> list[float]:
    made = plan(*specs)
    return calibrate(made, alone(made), None, "cpu", 1)


def test_more_of_the_same_costs_more() -> None:
    # The same kinds of step in one plan: timed once, so that only the counts differ.
    short, longer = costs(spec(50, 3), spec(50, 40, rate=0.02))
    assert short > 0
    assert 41 / 4 <= longer / short <= 40 / 3 + 1e-9  # measurements, steps
    often, seldom = costs(spec(50, 40), spec(50, 40, rate=0.02, every=20))
    assert often > seldom


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_one_that_diverges_at_once_has_a_cost(optimizer: str) -> None:
    assert costs(spec(10, 3, rate=1e30, name=optimizer))[0] > 0


@pytest.mark.parametrize("size", [1, 2, 24, 700, 1000, SAMPLES])
def test_epochs_of_any_number_of_steps(size: int) -> None:
    assert costs(spec(size, 30))[0] > 0


def test_trials() -> None:
    start = spec(50, 3)
    few = TrialsSpec(start=start, batch_sizes=(4, 512), samples=600, draws=10, learning_rate=0.1)
    more = few.model_copy(update={"draws": 40, "orders": 2})
    detailed = few.model_copy(update={"detailed": 10})
    _, a, b, c = costs(few, more, detailed)
    assert a > 0
    assert c > 0
    assert b == pytest.approx(8 * a)


def test_a_trial_of_more_samples_than_are_timed_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate_module, "ROWS", 64)
    large = TrialsSpec(
        start=spec(50, 3), batch_sizes=(512,), samples=600, draws=10, learning_rate=0.1
    )
    assert costs(large)[1] > 0


def test_a_first_compilation_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    for slow in (False, True):
        told.clear()
        monkeypatch.setattr(calibrate_module, "SLOW_S", 1.0)
        compile_loop = (lambda *_: time.sleep(1.5)) if slow else (lambda *_: None)
        monkeypatch.setattr(calibrate_module, "compile_loop", compile_loop)
        calibrate(plan(spec(20, 3)), [(0,)], None, "cpu", 1, told.append)
        assert len(told) == slow
    told.clear()
    calibrate(plan(spec(50, 3)), [(0,)], None, "cpu", 1, told.append)
    assert not told, "nothing of this plan takes the loop"
