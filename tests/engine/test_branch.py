"""From the end of one run into another: where it stands, and what was measured by then."""

import pytest

from batchlab.engine.branch import branch, measured, select
from batchlab.engine.train import train
from batchlab.spec import Cadence, Optimizer, Phase
from tests import toy

HEAVY, ADAM = Optimizer(momentum=0.9), Optimizer(name="adam")


def heavy(size: int, **length: int) -> Phase:
    return toy.phase(size, optimizer=HEAVY, **length)


START = toy.spec(heavy(10, epochs=2), heavy(20, epochs=1))


@pytest.mark.parametrize(
    ("rest", "phase", "phase_step"),
    [
        ((heavy(20, epochs=3),), 1, 3),
        ((heavy(20, epochs=1), heavy(20, epochs=1)), 2, 0),
        ((heavy(20, epochs=1), heavy(5, steps=7)), 2, 0),
    ],
)
def test_where_the_longer_run_stands(rest: tuple[Phase, ...], phase: int, phase_step: int) -> None:
    end = train(START, toy.data())
    here = branch(end, toy.spec(heavy(10, epochs=2), *rest), toy.SAMPLES)
    assert here.status == "running"
    assert (here.position.phase, here.position.phase_step) == (phase, phase_step)
    assert (here.position.epoch, here.position.epoch_step) == (3, 0)
    assert (here.position.step, here.position.samples) == (13, 150)
    assert here.tensors.keys() == end.tensors.keys()
    assert (end.position.phase, end.status) == (2, "finished")  # the end itself is left alone


def test_another_optimizer_begins_afresh() -> None:
    end = train(START, toy.data())
    longer = toy.spec(*START.schedule, toy.phase(20, optimizer=ADAM))
    here = branch(end, longer, toy.SAMPLES)
    assert here.group("model").keys() == end.group("model").keys()
    assert end.group("optimizer")
    assert not here.group("optimizer")


def test_no_further_way() -> None:
    end = train(START, toy.data())
    assert branch(end, START, toy.SAMPLES) is end
    with pytest.raises(ValueError, match="8 steps after"):
        branch(end, toy.spec(heavy(10, epochs=1)), toy.SAMPLES)
    wild = train(toy.spec(toy.phase(10, rate=1e6, epochs=20)), toy.data())
    assert branch(wild, toy.spec(toy.phase(10, rate=1e6, epochs=30)), toy.SAMPLES) is wild


def test_records_by_the_point() -> None:
    cadence = Cadence(every=2, steps=(3, 10))
    records = train(toy.spec(toy.phase(10, epochs=3), cadence=cadence), toy.data()).records
    assert measured(records) == (frozenset({0, 10, 15}), frozenset({3}))
    assert select(records, {0, 10, 15}, {3}) == records
    told = select(records, {15}, {3, 10})
    assert measured(told) == (frozenset({15}), frozenset({3, 10}))
    assert {r.name for r in told if r.step == 10} == {"distance", "norm", "cosine"}
