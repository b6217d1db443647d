"""Whether the gradient in `.grad` is the sum over the examples that the hooks have seen."""

import copy
import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from batchlab.probes.per_example import PerExampleNorms
from batchlab.spec import UserError
from tests.probes.test_per_example import B, each_loss


class TiedByFunction(nn.Module):
    """The table is the head's weight too, which no module shows."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.table = nn.Linear(4, 4), nn.Linear(4, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.fc(self.table(x)).tanh(), self.table.weight)


def penalised(model: nn.Module, x: Tensor) -> None:
    weight = model.get_parameter("fc.weight")
    (each_loss(model(x)).mean() + weight.square().sum()).backward()


def adversarial(model: nn.Module, x: Tensor) -> None:
    """By so little that the two gradients point the same way."""
    x = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(each_loss(model(x)).mean(), x)
    each_loss(model(x.detach() + 1e-3 * g.sign())).mean().backward()


def adversarial_and_zeroed(model: nn.Module, x: Tensor) -> None:
    x = x.clone().requires_grad_()
    each_loss(model(x)).mean().backward()
    model.zero_grad()
    assert x.grad is not None
    each_loss(model(x.detach() + 1e-3 * x.grad.sign())).mean().backward()


def two_losses(model: nn.Module, x: Tensor) -> None:
    z = model(x)
    each_loss(z[:, :2]).mean().backward(retain_graph=True)
    each_loss(z[:, 2:]).mean().backward()


def plainly(model: nn.Module, x: Tensor) -> None:
    each_loss(model(x)).mean().backward()


def layers() -> nn.Module:
    torch.manual_seed(0)
    told = nn.Sequential()
    told.add_module("fc", nn.Linear(4, 6))
    told.add_module("act", nn.Tanh())
    told.add_module("head", nn.Linear(6, 4))
    return told


@pytest.mark.parametrize(
    ("make", "backward", "why"),
    [
        (TiedByFunction, plainly, r"table: its gradient's norm is .* used outside its layer"),
        (layers, penalised, r"fc: its gradient's norm is .* a penalty on it"),
        (layers, adversarial, r"fc: its gradient's norm is .* not in \.grad"),
        (layers, adversarial_and_zeroed, r"fc: its gradient's norm is .* not in \.grad"),
        (layers, two_losses, "fc went backward twice after one forward pass"),
    ],
)
def test_a_gradient_that_is_not_its_examples_sum_is_told(
    make: Callable[[], nn.Module], backward: Callable[[nn.Module, Tensor], None], why: str
) -> None:
    model = make()
    with PerExampleNorms(model) as norms:
        backward(model, torch.randn(B, 4))
        with pytest.raises(UserError, match=why) as said:
            norms.take()
        assert str(said.value).endswith("; use chunks instead")


def test_scaling_clipping_and_gradients_set_by_hand_are_no_difference() -> None:
    model, x = layers(), torch.randn(B, 4)
    for how in ("clipped", "unscaled", "by hand"):
        with PerExampleNorms(model) as norms:
            loss = each_loss(model(x)).mean() * 1024
            if how == "by hand":
                parameters = list(model.parameters())
                for p, g in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                    p.grad = g
            else:
                loss.backward()
                for k, p in enumerate(model.parameters()):
                    assert p.grad is not None
                    p.grad.mul_(1e-3 if how == "clipped" else 1e-3 * k)  # even each its own
            norms.take()
            model.zero_grad()


def test_the_comparison_waits_for_a_finite_step_and_is_made_once() -> None:
    model, x = layers(), torch.randn(B, 4)
    with PerExampleNorms(model) as norms:
        (each_loss(model(x)).mean() * torch.inf).backward()
        assert not norms.take().norms_2P.isfinite().all()
        model.zero_grad()
        penalised(model, x)
        with pytest.raises(UserError, match="a penalty on it"):
            norms.take()
        model.zero_grad()
        plainly(model, x)
        norms.take()
        assert all(layer.checked and not layer.sums for layer in norms._layers)
        model.zero_grad()
        penalised(model, x)
        norms.take()  # as the module says: not seen


def test_an_error_in_a_hook_waits_for_take() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 2), nn.Tanh())
    with PerExampleNorms(model) as norms:
        model(torch.randn(2, 4, 4)).sum().backward()
        assert model.get_parameter("0.weight").grad is not None
        with pytest.raises(UserError, match="0: an input of 3 dimensions has no batch"):
            norms.take()
        model.zero_grad()
        model(torch.randn(B, 2, 4, 4)).sum().backward()
        norms.take()


def test_a_deep_copy_of_the_model_is_not_watched() -> None:
    model, x = layers(), torch.randn(B, 4)
    with PerExampleNorms(model) as norms:
        twin = copy.deepcopy(model)
        for one in (model, twin):
            each_loss(one(x)).mean().backward()
        assert norms.sizes == [B]


def test_where_a_bias_alone_is_trained_no_input_is_kept() -> None:
    model, x = nn.Linear(7, 3), torch.randn(B, 7)
    model.weight.requires_grad_(False)
    with PerExampleNorms(model) as norms:
        seen = weakref.ref(x.untyped_storage())
        z = model(x)
        assert seen() is not None
        del x
        gc.collect()
        assert seen() is None
        z.square().sum(1).mean().backward()
        told = norms.take()
    d = 2 * z.detach()
    torch.testing.assert_close(told.norms_2P[0, 0] ** 2, d.square().sum(1).mean())
    torch.testing.assert_close(told.norms_2P[1, 0], d.mean(0).norm())
