"""Hessian-vector products against explicit Hessians, and of what has no second derivative."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from batchlab.probes.hessian import gradient, hessian_products


class Once(torch.autograd.Function):
    """tanh, whose backward pass is not for differentiating."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        result: Tensor = d * (1 - x.tanh() ** 2)
        return result


class Net(nn.Module):
    def __init__(self, act: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.act = nn.Linear(4, 5, dtype=dtype), act
        self.second = nn.Linear(5, 3, dtype=dtype)
        self.unused = nn.Parameter(torch.ones(2, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.act(self.first(x)))
        return out


def problem(
    act: Callable[[Tensor], Tensor], dtype: torch.dtype = torch.float64
) -> tuple[list[nn.Parameter], Callable[[], Tensor]]:
    net = Net(act, dtype)
    g = torch.Generator().manual_seed(1)
    x, y = torch.randn(6, 4, generator=g, dtype=dtype), torch.tensor([0, 1, 2, 0, 1, 2])
    return list(net.parameters()), lambda: F.cross_entropy(net(x), y)


def explicit(loss: Callable[[], Tensor], parameters: list[nn.Parameter]) -> Tensor:
    first = torch.autograd.grad(loss(), parameters, create_graph=True, materialize_grads=True)
    flat = torch.cat([g.flatten() for g in first])
    rows = []
    for v in flat:
        own = (
            torch.autograd.grad(v, parameters, retain_graph=True, materialize_grads=True)
            if v.requires_grad
            else [torch.zeros_like(p) for p in parameters]
        )
        rows.append(torch.cat([h.flatten() for h in own]))
    return torch.stack(rows)


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.flatten() for t in tensors])


def directions(parameters: list[nn.Parameter], count: int = 2) -> list[list[Tensor]]:
    g = torch.Generator().manual_seed(2)
    return [
        [torch.randn(p.shape, generator=g, dtype=p.dtype) for p in parameters] for _ in range(count)
    ]


@pytest.mark.parametrize(("act", "exact"), [(torch.tanh, True), (Once.apply, False)])
def test_products_are_the_explicit_hessians(act: Callable[[Tensor], Tensor], exact: bool) -> None:
    parameters, loss = problem(act)
    vectors = directions(parameters)
    before = [p.detach().clone() for p in parameters]
    told, sure = hessian_products(loss, parameters, vectors)
    assert sure is exact
    same, tanh = problem(torch.tanh)
    hessian = explicit(tanh, same)
    for product, vector in zip(told, vectors, strict=True):
        expected = hessian @ flat(vector)
        error = float((flat(product) - expected).norm() / expected.norm())
        assert error < (1e-12 if exact else 1e-6)
        other = flat(vectors[0]) - flat(vectors[1])  # the negative control
        assert float((flat(product) - hessian @ other).norm() / expected.norm()) > 0.1
    assert all(torch.equal(p, w) for p, w in zip(parameters, before, strict=True))
    assert all(p.grad is None for p in parameters)
    assert all(not t.requires_grad for product in told for t in product)


def test_differences_in_single_precision_are_near() -> None:
    parameters, loss = problem(Once.apply, torch.float32)
    (told,), exact = hessian_products(loss, parameters, directions(parameters, 1))
    same, tanh = problem(torch.tanh, torch.float32)
    expected = explicit(tanh, same) @ flat(directions(parameters, 1)[0])
    assert not exact
    assert float((flat(told) - expected).norm() / expected.norm()) < 3e-3


def test_attention_has_its_second_derivative() -> None:
    torch.manual_seed(0)
    q = nn.Parameter(torch.randn(1, 2, 4, 8, dtype=torch.float64))

    def loss() -> Tensor:
        return F.scaled_dot_product_attention(q, q.tanh(), q.sin()).square().sum()

    (told,), exact = hessian_products(loss, [q], [[torch.ones_like(q)]])
    assert exact
    step = 1e-6
    sides = []
    for sign in (1, -1):
        moved = nn.Parameter(q.detach() + sign * step)
        out = F.scaled_dot_product_attention(moved, moved.tanh(), moved.sin()).square().sum()
        sides.append(torch.autograd.grad(out, moved)[0])
    assert torch.allclose(told[0], (sides[0] - sides[1]) / (2 * step), rtol=1e-5, atol=1e-7)


def test_a_linear_loss_has_no_curvature_and_zero_vectors_none() -> None:
    w = nn.Parameter(torch.tensor([1.0, 2.0]))
    told, exact = hessian_products(lambda: w.sum(), [w], [[torch.ones(2)]])
    assert exact
    assert told[0][0].tolist() == [0, 0]
    assert gradient(lambda: w.sum(), [w])[0].tolist() == [1, 1]
    parameters, loss = problem(Once.apply)
    (told_zero,), exact = hessian_products(
        loss, parameters, [[torch.zeros_like(p) for p in parameters]]
    )
    assert not exact
    assert float(flat(told_zero).abs().max()) == 0


def test_other_errors_are_not_taken_for_missing_derivatives() -> None:
    w = nn.Parameter(torch.ones(2))

    def broken() -> Tensor:
        raise RuntimeError("of the user's own")

    with pytest.raises(RuntimeError, match="of the user's own"):
        hessian_products(broken, [w], [[torch.ones(2)]])
