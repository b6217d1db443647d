"""The fast steps are the autograd step; optimizers are PyTorch's own."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from batchlab.engine.draws import generator
from batchlab.engine.mlp import linear_layers
from batchlab.engine.step import (
    COMPILED,
    Autograd,
    ClosedForm,
    CompiledSGD,
    InPlaceSGD,
    Stepper,
    stepper,
)
from batchlab.spec import Matmul, Model, Optimizer, Phase
from batchlab.workloads.mlp import build
from tests import toy


def fresh(dtype: torch.dtype) -> nn.Sequential:
    return build(Model(hidden=(16, 8)), toy.INPUTS, toy.CLASSES, generator(0, "init")).to(dtype)


def run(one: Stepper, dtype: torch.dtype, steps: int = 40) -> None:
    data = toy.data(dtype)
    for k in range(steps):
        rows = slice(k % 7, k % 7 + 5)
        one.steps(data.train_x[rows], data.train_y[rows], 5)


Fast = type[InPlaceSGD] | type[CompiledSGD]


def layers_of(model: nn.Module) -> list[nn.Linear]:
    layers = linear_layers(model)
    assert layers is not None
    return layers


def fast(kind: Fast, model: nn.Module, rate: float) -> Stepper:
    return kind(layers_of(model), rate)


def closed(model: nn.Module, phase: Phase, matmul: Matmul = "float32") -> ClosedForm:
    return ClosedForm(model, layers_of(model), phase, matmul)


def in_place(model: nn.Module, phase: Phase, matmul: Matmul = "float32") -> InPlaceSGD:
    return InPlaceSGD(layers_of(model), phase.learning_rate, matmul)


def distance(ends: list[nn.Module], start: nn.Module) -> float:
    """The largest difference of the two ends, over the way from the start, of any parameter."""
    states = (one.state_dict().values() for one in (*ends, start))
    return max(float((a - b).norm() / (b - w).norm()) for a, b, w in zip(*states, strict=True))


PRECISIONS = [(torch.float32, 1e-4), (torch.float64, 1e-10)]
FAST = [InPlaceSGD, CompiledSGD]


@pytest.mark.parametrize("kind", FAST)
@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("size", [1, 2, 3, 7, 32, 50])
def test_fast_steps_are_autograd(
    kind: Fast, dtype: torch.dtype, tolerance: float, size: int
) -> None:
    data, phase = toy.data(dtype), toy.phase(size)
    mine, plain = fresh(dtype), fresh(dtype)
    steppers = [fast(kind, mine, phase.learning_rate), Autograd(plain, phase)]
    for one in steppers:
        for _ in range(3):
            one.steps(data.train_x, data.train_y, size)
        one.settle()
    assert distance([mine, plain], fresh(dtype)) < tolerance


OPTIMIZERS = [
    Optimizer(momentum=0.9),
    Optimizer(weight_decay=0.1),
    Optimizer(momentum=0.9, weight_decay=0.1),
    Optimizer(name="adam"),
    Optimizer(name="adamw", weight_decay=0.1),
]


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)
@pytest.mark.parametrize("size", [1, 7, 50])
def test_gradients_in_closed_form_are_autograds(optimizer: Optimizer, size: int) -> None:
    data, phase = toy.data(torch.float64), toy.phase(size, optimizer=optimizer)
    mine, plain = fresh(torch.float64), fresh(torch.float64)
    for one in (closed(mine, phase), Autograd(plain, phase)):
        for _ in range(3):
            one.steps(data.train_x, data.train_y, size)
    assert distance([mine, plain], fresh(torch.float64)) < 1e-10


@pytest.mark.parametrize("make", [in_place, closed, Autograd])
def test_bf16_products_are_near_and_not_the_same(
    make: Callable[[nn.Module, Phase, Matmul], Stepper],
) -> None:
    data, phase = toy.data(), toy.phase(25)
    ends: dict[Matmul, nn.Module] = {}
    for matmul in ("float32", "bf16"):
        model = ends[matmul] = fresh(torch.float32)
        one = make(model, phase, matmul)
        for _ in range(4):
            one.steps(data.train_x, data.train_y, 25)
        assert one.first_diverged() is None
        assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert 1e-5 < distance([ends["bf16"], ends["float32"]], fresh(torch.float32)) < 0.05


@pytest.mark.parametrize("hidden", [(1024, 1100), (520, 1100, 600), (1030, 2048)], ids=str)
@pytest.mark.parametrize("size", [1, 2, 5])
def test_threads_change_no_bit(hidden: tuple[int, ...], size: int) -> None:
    """The same weights with one thread and with two, and they are autograd's."""
    data = toy.data(torch.float64)
    ends: dict[int, nn.Module] = {}
    threads = torch.get_num_threads()

    def model() -> nn.Module:
        made = build(Model(hidden=hidden), toy.INPUTS, toy.CLASSES, generator(0, "init"))
        return made.double()

    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            ends[count] = model()
            one = fast(CompiledSGD, ends[count], 0.05)
            for _ in range(4):
                one.steps(data.train_x, data.train_y, size)
            one.settle()
    finally:
        torch.set_num_threads(threads)
    for a, b in zip(ends[1].parameters(), ends[2].parameters(), strict=True):
        assert torch.equal(a, b)
    plain = model()
    for _ in range(4):
        Autograd(plain, toy.phase(size)).steps(data.train_x, data.train_y, size)
    assert distance([ends[2], plain], model()) < 1e-10


def test_the_fast_path_is_for_plain_sgd_on_perceptrons() -> None:
    model = fresh(torch.float32)
    assert isinstance(stepper(model, toy.phase(COMPILED)), CompiledSGD)
    assert isinstance(stepper(model, toy.phase(COMPILED + 1)), InPlaceSGD)
    shallow = build(Model(hidden=(4,)), 6, 3, generator(0, "init"))
    assert isinstance(stepper(shallow, toy.phase(5)), InPlaceSGD)
    for optimizer in OPTIMIZERS:
        assert isinstance(stepper(model, toy.phase(5, optimizer=optimizer)), ClosedForm)
    assert isinstance(stepper(nn.Sequential(nn.Linear(2, 2), nn.Tanh()), toy.phase(5)), Autograd)


@pytest.mark.parametrize(
    "optimizer",
    [Optimizer(momentum=0.9), Optimizer(name="adam"), Optimizer(name="adamw", weight_decay=0.1)],
    ids=lambda o: o.name,
)
@pytest.mark.parametrize("make", [closed, Autograd])
def test_optimizer_state_goes_to_a_checkpoint_and_back(
    make: Callable[[nn.Module, Phase], Stepper], optimizer: Optimizer
) -> None:
    phase = toy.phase(5, optimizer=optimizer)
    through, stopped, forgetful = (fresh(torch.float32) for _ in range(3))
    one = make(through, phase)
    run(one, torch.float32, 30)
    before = make(stopped, phase)
    run(before, torch.float32, 15)
    forgetful.load_state_dict(stopped.state_dict())
    after = make(stopped, phase)
    after.load({k: v.clone() for k, v in before.state().items()})
    data = toy.data()
    fresh_optimizer = make(forgetful, phase)
    for k in range(15, 30):
        rows = slice(k % 7, k % 7 + 5)
        after.steps(data.train_x[rows], data.train_y[rows], 5)
        fresh_optimizer.steps(data.train_x[rows], data.train_y[rows], 5)
    for a, b in zip(through.parameters(), stopped.parameters(), strict=True):
        assert torch.equal(a, b)
    pairs = zip(through.parameters(), forgetful.parameters(), strict=True)
    assert not all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    "make",
    [
        lambda model: fast(InPlaceSGD, model, 0.1),
        lambda model: fast(CompiledSGD, model, 0.1),
        lambda model: Autograd(model, toy.phase(5)),
        lambda model: closed(model, toy.phase(5, optimizer=Optimizer(name="adam"))),
    ],
)
def test_the_first_step_that_is_not_finite(make: Callable[[nn.Module], Stepper]) -> None:
    model = fresh(torch.float32)
    one = make(model)
    run(one, torch.float32, 3)
    assert one.first_diverged() is None
    run(one, torch.float32, 2)
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    run(one, torch.float32, 2)
    assert one.first_diverged() == 2
    assert one.first_diverged() is None
