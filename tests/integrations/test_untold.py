"""What a watch in a plain loop can not tell, or must not take for a part of the batch."""

from collections import UserDict
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn import functional as F

from batchlab import GradientNorm, NoiseScale
from batchlab.integrations.sources import first_dimension
from batchlab.spec import UserError
from tests.integrations.loops import data, perceptron, train
from tests.integrations.test_plain import assert_estimates, normed, oracle


def test_a_gradient_that_hooks_do_not_see_falls_back_to_micro_batches() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.inner, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            told: Tensor = self.head(F.linear(self.inner(x).tanh(), self.inner.weight))
            return told

    _, (watch,) = train(lambda m, o: [NoiseScale(m, o)], make=Tied, micro_batches=3)
    assert isinstance(watch, NoiseScale)
    assert watch.told.startswith("micro-batches (inner: its gradient's norm is")
    assert "a parameter used outside its layer" in str(watch.compute())
    assert (watch.compute().estimate.steps, watch.skipped) == (3, 1)


def test_later_steps_that_can_not_be_told_are_left_out() -> None:
    """Layer drop: now and then a layer takes no part."""

    class Dropped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.calls = 0
            self.inner, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            told: Tensor = self.head(x if self.calls % 5 == 0 else self.inner(x))
            return told

    _, (watch,) = train(lambda m, o: [NoiseScale(m, o)], make=Dropped)
    assert isinstance(watch, NoiseScale)
    assert (watch.compute().estimate.steps, watch.skipped) == (10, 2)
    assert "2 steps left out (no gradient has passed inner" in str(watch.compute())


def test_later_steps_of_other_micro_batches_are_left_out() -> None:
    model = normed()
    watch = NoiseScale(model)
    for k, (x, y) in enumerate(data()):
        if k == 4:
            model(x)  # for something else
        (F.cross_entropy(model(x), y) / 2).backward()
        if k % 2:
            watch.step()
            model.zero_grad()
    assert (watch.compute().estimate.steps, watch.skipped) == (5, 1)
    assert "the model was called 2 times" in str(watch.compute())


def test_an_evaluation_with_gradients_is_no_micro_batch() -> None:
    model = normed()
    watch = NoiseScale(model)
    for k, (x, y) in enumerate(data()):
        model.eval()
        model(x)
        model.train()
        (F.cross_entropy(model(x), y) / 2).backward()
        if k % 2:
            watch.step()
            model.zero_grad()
    assert (watch.compute().estimate.steps, watch.skipped) == (6, 0)


def test_a_scaler_that_is_off_is_none() -> None:
    scaler = GradScaler("cpu", enabled=False)
    _, watches = train(lambda m, o: [NoiseScale(m, o, scaler=scaler), NoiseScale(m, scaler=scaler)])
    for watch in watches:
        assert_estimates(watch, *oracle(1, unit=1))


def compiled_forward(module: nn.Module) -> nn.Module:
    module.forward = torch.compile(module.forward)  # type: ignore[method-assign]
    return module


def compiled_in_place(module: nn.Module) -> nn.Module:
    module.compile()
    return module


def not_compiled(module: nn.Module) -> nn.Module:
    module.forward = torch.compiler.disable(module.forward)  # type: ignore[method-assign]
    return module


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "change", [torch.compile, compiled_forward, compiled_in_place, not_compiled]
)
def test_a_compiled_part_is_recognised(change: Callable[[nn.Module], nn.Module]) -> None:
    told = NoiseScale(nn.Sequential(change(perceptron()), nn.Linear(3, 2))).told
    expected = "per-example norms" if change is not_compiled else "micro-batches (a compiled model"
    assert told.startswith(expected)


class Held:
    """A batch of a class of its own."""

    def __init__(self, x: Tensor) -> None:
        self.x = x


class OfHeld(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = normed()

    def forward(self, batch: Held) -> Tensor:
        told: Tensor = self.inner(batch.x)
        return told


@pytest.mark.parametrize("told", [True, False])
def test_a_size_that_can_not_be_seen(told: bool) -> None:
    model = OfHeld()
    watch = NoiseScale(model)
    for k, (x, y) in enumerate(data()):
        if told:
            watch.micro_batch(len(x))
        (F.cross_entropy(model(Held(x)), y) / 2).backward()
        if k == 1 and not told:
            with pytest.raises(UserError, match=r"size can't be seen .* call watch\.micro_batch"):
                watch.step()
            return
        if k % 2:
            watch.step()
            model.zero_grad()
    assert watch.compute().estimate.steps == 6


def test_the_first_dimension_of_any_tree() -> None:
    class Pair(NamedTuple):
        name: str
        x: Tensor

    x = torch.zeros(5, 2)
    for batch in (x, [torch.tensor(1.0), x], {"n": 3, "x": (x,)}, UserDict(x=x), Pair("a", x)):
        assert first_dimension(batch) == 5
    assert first_dimension(Held(x)) == first_dimension([]) == 0


def test_sparse_gradients() -> None:
    """Sent to micro-batches by name; the gradient's norm is that of the dense ones."""
    tokens, norms = torch.randint(7, (6, 4, 3), generator=torch.Generator().manual_seed(0)), []
    for sparse in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(7, 4, sparse=sparse), nn.Flatten(), nn.Linear(12, 2))
        watch = NoiseScale(model)
        norm = GradientNorm(model, of=watch)
        for k, x in enumerate(tokens):
            (model(x).square().sum(1).mean() / 2).backward()
            if k % 2:
                watch.step()
                norm.step()
                model.zero_grad()
        assert watch.told.startswith("micro-batches (0: an embedding" if sparse else "per-example")
        assert watch.compute().estimate.steps == 3
        norms.append(norm.compute().values)
    for name, values in norms[0].items():
        assert norms[1][name] == pytest.approx(values, rel=1e-6)


def test_an_adversarial_pass_is_no_micro_batch() -> None:
    """Of a backward pass of its own, after which gradients are zeroed."""
    model = normed()
    watch = NoiseScale(model)
    x, y = data()[0]
    for part in (x, x + 0.1):
        model.zero_grad()
        F.cross_entropy(model(part), y).backward()
    with pytest.raises(UserError, match="must be zero before a step, and stay"):
        watch.step()
