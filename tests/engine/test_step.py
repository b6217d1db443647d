"""The in-place step is the autograd step; optimizers are PyTorch's own."""

import pytest
import torch
from torch import nn

from batchlab.engine.draws import generator
from batchlab.engine.mlp import linear_layers
from batchlab.engine.step import Autograd, InPlaceSGD, Stepper, stepper
from batchlab.spec import Model, Optimizer
from batchlab.workloads.mlp import build
from tests import toy


def fresh(dtype: torch.dtype) -> nn.Sequential:
    return build(Model(hidden=(16, 8)), toy.INPUTS, toy.CLASSES, generator(0, "init")).to(dtype)


def run(one: Stepper, dtype: torch.dtype, steps: int = 40) -> None:
    data = toy.data(dtype)
    for k in range(steps):
        rows = slice(k % 7, k % 7 + 5)
        one.step(data.train_x[rows], data.train_y[rows])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-10)])
def test_in_place_is_autograd(dtype: torch.dtype, tolerance: float) -> None:
    fast, plain = fresh(dtype), fresh(dtype)
    phase = toy.phase(5)
    layers = linear_layers(fast)
    assert layers is not None
    run(InPlaceSGD(layers, phase.learning_rate), dtype)
    run(Autograd(plain, phase), dtype)
    start = fresh(dtype)
    ends = (one.state_dict() for one in (fast, plain, start))
    for a, b, w0 in zip(*(state.values() for state in ends), strict=True):
        assert float((a - b).norm() / (b - w0).norm()) < tolerance
        assert not torch.equal(b, w0)


def test_the_fast_path_is_for_plain_sgd_on_perceptrons() -> None:
    model = fresh(torch.float32)
    assert isinstance(stepper(model, toy.phase(5)), InPlaceSGD)
    for optimizer in (
        Optimizer(momentum=0.5),
        Optimizer(weight_decay=0.1),
        Optimizer(name="adam"),
        Optimizer(name="adamw"),
    ):
        assert isinstance(stepper(model, toy.phase(5, optimizer=optimizer)), Autograd)
    assert isinstance(stepper(nn.Sequential(nn.Linear(2, 2), nn.Tanh()), toy.phase(5)), Autograd)


@pytest.mark.parametrize(
    "optimizer",
    [Optimizer(momentum=0.9), Optimizer(name="adam"), Optimizer(name="adamw", weight_decay=0.1)],
    ids=lambda o: o.name,
)
def test_optimizer_state_goes_to_a_checkpoint_and_back(optimizer: Optimizer) -> None:
    phase = toy.phase(5, optimizer=optimizer)
    through, stopped, forgetful = (fresh(torch.float32) for _ in range(3))
    one = Autograd(through, phase)
    run(one, torch.float32, 30)
    before = Autograd(stopped, phase)
    run(before, torch.float32, 15)
    forgetful.load_state_dict(stopped.state_dict())
    after = Autograd(stopped, phase)
    after.load({k: v.clone() for k, v in before.state().items()})
    data = toy.data()
    fresh_optimizer = Autograd(forgetful, phase)
    for k in range(15, 30):
        rows = slice(k % 7, k % 7 + 5)
        after.step(data.train_x[rows], data.train_y[rows])
        fresh_optimizer.step(data.train_x[rows], data.train_y[rows])
    for a, b in zip(through.parameters(), stopped.parameters(), strict=True):
        assert torch.equal(a, b)
    pairs = zip(through.parameters(), forgetful.parameters(), strict=True)
    assert not all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("fast", [True, False])
def test_the_first_step_that_is_not_finite(fast: bool) -> None:
    model = fresh(torch.float32)
    layers = linear_layers(model)
    assert layers is not None
    one = InPlaceSGD(layers, 0.1) if fast else Autograd(model, toy.phase(5))
    run(one, torch.float32, 3)
    assert one.first_diverged() is None
    run(one, torch.float32, 2)
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    run(one, torch.float32, 2)
    assert one.first_diverged() == 2
    assert one.first_diverged() is None
