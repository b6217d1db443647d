"""Replicas in a stack do what each does alone, to the bit, and what autograd does, to rounding."""

import copy
from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
import torch

from batchlab.engine import mlp
from batchlab.engine.data import load
from batchlab.engine.lanes import Lanes
from batchlab.engine.replicas import Each, Replicas, Stacked, replicas
from batchlab.engine.state import RunState
from batchlab.engine.step import Autograd, CompiledSGD
from batchlab.engine.train import initial_model, train, train_together
from batchlab.spec import Cadence, Optimizer, Phase, TrainSpec
from batchlab.workloads import workload
from batchlab.workloads.base import Data

PLAIN, HEAVY = Optimizer(), Optimizer(momentum=0.9)
ADAM, DECOUPLED = Optimizer(name="adam"), Optimizer(name="adamw", weight_decay=0.1)
OPTIMIZERS = [PLAIN, HEAVY, ADAM, DECOUPLED]


def digits(dtype: str = "float32") -> Data:
    return load("digits", None, "cpu", dtype)


def phase(size: int, rate: float = 0.01, optimizer: Optimizer = PLAIN, epochs: int = 1) -> Phase:
    return Phase(batch_size=size, learning_rate=rate, epochs=epochs, optimizer=optimizer)


def spec(*phases: Phase, seed: int = 0, hidden: tuple[int, ...] = (256, 256)) -> TrainSpec:
    """As the digits protocol has it, or narrower."""
    made = workload("digits").protocol.spec(phases, seed, Cadence(every=1, steps=(1, 3, 20)))
    model = made.model.model_copy(update={"hidden": hidden})
    return made.model_copy(update={"model": model})


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def same(one: RunState, other: RunState) -> bool:
    return (
        (one.status, one.position, one.records) == (other.status, other.position, other.records)
        and one.tensors.keys() == other.tensors.keys()
        and all(torch.equal(v, other.tensors[k]) for k, v in one.tensors.items())
    )


Make = Callable[[int], TrainSpec]
MAKES: dict[str, Make] = {
    "rates": lambda k: spec(phase(32, (0.01, 0.16, 0.02)[k % 3]), seed=k),
    "one hidden layer": lambda k: spec(phase(8), seed=k, hidden=(64,)),
    "three hidden layers": lambda k: spec(phase(57), seed=k, hidden=(48, 16, 80)),
    "odd widths": lambda k: spec(phase(32), seed=k, hidden=(37, 21)),
    "momentum": lambda k: spec(phase(32, 0.01, HEAVY), phase(64, 0.02, HEAVY), seed=k),
    "adam": lambda k: spec(phase(64, 0.01, (ADAM, DECOUPLED)[k % 2]), seed=k),
    "odd batches": lambda k: spec(phase(29, 0.01, ADAM), phase(5, 0.01, ADAM), seed=k),
    "into the stack": lambda k: spec(phase(200), phase(8), phase(48), seed=k),
    "out of the stack": lambda k: spec(phase(50), phase(16), seed=k),
}


@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
@pytest.mark.usefixtures("threads")
def test_a_run_does_not_depend_on_its_neighbours(make: Make) -> None:
    specs = [make(k) for k in range(5)]
    alone = [train(one, digits()) for one in specs]
    assert not any(same(one, other) for one, other in pairwise(alone))
    for members in ([0, 1, 2, 3, 4], [3, 1], [4, 0, 2]):
        together = train_together([specs[k] for k in members], digits())
        assert all(same(end, alone[k]) for end, k in zip(together, members, strict=True))


@pytest.mark.parametrize("size", [8, 32, 128])
def test_one_that_diverges_leaves_the_others_alone(size: int) -> None:
    rates = [0.01, 1e8, 0.02]
    specs = [spec(phase(size, rate, epochs=2), seed=k) for k, rate in enumerate(rates)]
    ends = train_together(specs, digits())
    assert [end.status for end in ends] == ["finished", "diverged", "finished"]
    for one, end in zip(specs, ends, strict=True):
        alone = train(one, digits())
        assert (alone.position, alone.records) == (end.position, end.records)


def stacked(models: list[torch.nn.Sequential], phases: list[Phase]) -> Stacked:
    made = replicas(models, phases, "float32")
    assert isinstance(made, Stacked)
    return made


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: f"{o.name} {o.momentum}")
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-10), ("float32", 1e-4)])
def test_an_epoch_as_by_autograd(optimizer: Optimizer, dtype: str, tolerance: float) -> None:
    data, one = digits(dtype), phase(32, 0.01, optimizer)
    plain = [initial_model(spec(one, seed=k), data) for k in range(3)]
    fast = copy.deepcopy(plain)
    made = stacked(fast, [one] * 3)  # type: ignore[arg-type]
    made.steps(data.train_x.expand(3, -1, -1), data.train_y.expand(3, -1), 32)
    made.settle()
    for model, twin in zip(plain, fast, strict=True):
        Autograd(model, one).steps(data.train_x, data.train_y, 32)
        for a, b in zip(model.parameters(), twin.parameters(), strict=True):
            assert float((a - b).detach().norm() / a.detach().norm()) < tolerance


@pytest.mark.parametrize("optimizer", [HEAVY, ADAM], ids=lambda o: o.name)
def test_states_are_those_of_a_single_optimizer(optimizer: Optimizer) -> None:
    data, one = digits("float64"), phase(32, 0.01, optimizer)
    models = [initial_model(spec(one, seed=k), data) for k in range(2)]
    plain = copy.deepcopy(models[1])
    made, alone = stacked(models, [one] * 2), Autograd(plain, one)  # type: ignore[arg-type]
    assert made.states() == [{}, {}]
    half = data.train_x[:640], data.train_y[:640]
    made.steps(half[0].expand(2, -1, -1), half[1].expand(2, -1), 32)
    alone.steps(*half, 32)
    state = alone.state()
    assert made.states()[1].keys() == state.keys()
    for name, value in made.states()[1].items():
        torch.testing.assert_close(value, state[name], rtol=1e-9, atol=1e-12)
    back = copy.deepcopy(models)
    again = stacked(back, [one] * 2)  # type: ignore[arg-type]
    again.load(made.states())
    for it in (made, again):
        it.steps(half[0].expand(2, -1, -1), half[1].expand(2, -1), 32)
    for a, b in zip(models[0].parameters(), back[0].parameters(), strict=True):
        assert torch.equal(a, b)


class _Stop(Exception):
    pass


@pytest.mark.parametrize("optimizer", [PLAIN, ADAM], ids=lambda o: o.name)
def test_interrupted_and_resumed(optimizer: Optimizer) -> None:
    specs = [spec(phase(48, 0.01, optimizer, epochs=3), seed=k) for k in range(3)]
    whole = train_together(specs, digits())
    saved: list[RunState] = []
    left = 50

    def tick(steps: int) -> None:
        nonlocal left
        left -= steps
        if left < 0:
            raise _Stop

    with pytest.raises(_Stop):
        train_together(specs, digits(), tick=tick, save=saved.extend)
    assert {end.position.step for end in saved} == {60}
    ends = train_together(specs[1:], digits(), starts=saved[1:])
    assert all(same(end, other) for end, other in zip(ends, whole[1:], strict=True))
    assert same(train(specs[0], digits(), start=saved[0]), whole[0])


def chosen(hidden: tuple[int, ...], one: Phase, matmul: str = "float32") -> type[Replicas]:
    model = initial_model(spec(one, hidden=hidden), digits())
    return type(replicas([model], [one], matmul))  # type: ignore[arg-type]


def test_stacks_are_for_small_perceptrons_at_small_batches() -> None:
    assert chosen((256, 256), phase(25)) is Stacked
    assert chosen((256, 256), phase(64)) is Stacked
    assert chosen((256, 256), phase(65)) is Each
    assert chosen((256, 256), phase(24)) is Each  # by the compiled loop
    assert chosen((256,), phase(24)) is Stacked  # which has none for one hidden layer
    assert chosen((256, 256), phase(8, 0.01, ADAM)) is Stacked
    assert chosen((512, 512), phase(32)) is Each
    assert chosen((256, 250), phase(32)) is Each
    assert chosen((256, 256), phase(32), "bf16") is Each


def test_one_after_another_each_has_its_own_state() -> None:
    data, one = digits(), phase(8)
    models = [initial_model(spec(one, seed=k), data) for k in range(2)]
    made = Each(
        [CompiledSGD(mlp.linear_layers(m) or [], 0.01) for m in models],
        Lanes(torch.device("cpu"), 2),
    )
    assert not made.divisible
    made.steps(data.train_x[:80].expand(2, -1, -1), data.train_y[:80].expand(2, -1), 8)
    made.settle()
    assert made.first_diverged() == [None, None]
    assert made.states() == [{}, {}]
