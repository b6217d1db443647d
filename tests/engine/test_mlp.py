"""The perceptron's gradient in closed form against autograd, in float64."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from batchlab.engine import mlp
from batchlab.engine.products import add_rows, affine, multiplying
from batchlab.spec import Model
from batchlab.workloads.mlp import build


def models(replicas: int, hidden: tuple[int, ...]) -> list[nn.Sequential]:
    spec = Model(hidden=hidden)
    return [
        build(spec, 7, 4, torch.Generator().manual_seed(seed)).double() for seed in range(replicas)
    ]


def stacked(chosen: list[nn.Sequential]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    layers = [mlp.linear_layers(model) for model in chosen]
    weights, biases = [], []
    for group in zip(*(one for one in layers if one is not None), strict=True):
        weights.append(torch.stack([m.weight.detach() for m in group]))
        biases.append(torch.stack([m.bias.detach() for m in group]))
    return weights, biases


@pytest.mark.parametrize("hidden", [(), (5,), (9, 6), (3, 8, 5)])
@pytest.mark.parametrize("batch", [1, 2, 13])
def test_against_autograd(hidden: tuple[int, ...], batch: int) -> None:
    chosen = models(3, hidden)
    g = torch.Generator().manual_seed(9)
    x = torch.randn(3, batch, 7, generator=g, dtype=torch.float64)
    y = torch.randint(4, (3, batch), generator=g)
    weights, biases = stacked(chosen)
    for index, d, h in mlp.backward(weights, biases, x, y):
        for r, model in enumerate(chosen):
            layer = (mlp.linear_layers(model) or [])[index]
            loss = F.cross_entropy(model(x[r]), y[r])
            w, b = torch.autograd.grad(loss, [layer.weight, layer.bias])
            torch.testing.assert_close(d[r].mT @ h[r], w, rtol=1e-10, atol=1e-13)
            torch.testing.assert_close(d[r].sum(0), b, rtol=1e-10, atol=1e-13)
            if batch > 1:  # the negative control: the sum over the batch is not its mean
                assert not torch.allclose(batch * d[r].mT @ h[r], w, rtol=1e-3)


def test_layers_may_be_updated_as_they_are_yielded() -> None:
    x, y = torch.randn(1, 4, 7, dtype=torch.float64), torch.randint(4, (1, 4))
    untouched = [
        (d.clone(), h.clone()) for _, d, h in mlp.backward(*stacked(models(1, (5, 5))), x, y)
    ]
    weights, biases = stacked(models(1, (5, 5)))
    for (index, d, h), (d0, h0) in zip(mlp.backward(weights, biases, x, y), untouched, strict=True):
        assert torch.equal(d, d0)
        assert torch.equal(h, h0)
        weights[index].zero_()


def test_only_plain_perceptrons_are_recognised() -> None:
    linear, relu = nn.Linear(2, 2), nn.ReLU()
    assert mlp.linear_layers(nn.Sequential(linear, relu, nn.Linear(2, 2))) is not None
    for other in (
        linear,
        nn.Sequential(linear, relu),
        nn.Sequential(linear, nn.Tanh(), nn.Linear(2, 2)),
        nn.Sequential(linear, nn.Linear(2, 2), nn.Linear(2, 2)),
        nn.Sequential(nn.Linear(2, 2, bias=False)),
    ):
        assert mlp.linear_layers(other) is None


def test_tf32_is_asked_for_and_given_back() -> None:
    before = torch.get_float32_matmul_precision()
    with multiplying("tf32"):
        assert torch.get_float32_matmul_precision() == "high"
        with multiplying("float32"):
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "high"
    assert torch.get_float32_matmul_precision() == before == "highest"


@pytest.mark.parametrize("rows", [64, 300])
@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("relu", [True, False])
def test_a_layer_of_few_units(rows: int, replicas: int, relu: bool) -> None:
    h, w, b = (
        torch.randn(replicas, *shape, dtype=torch.float64)
        for shape in ((rows, 128), (10, 128), (10,))
    )
    told = affine(h.float(), w.float(), b.float(), relu)
    z = h @ w.mT + b[:, None]
    torch.testing.assert_close(told.double(), z.relu() if relu else z, rtol=1e-5, atol=1e-5)
    assert told.is_contiguous()


@pytest.mark.parametrize("rows", [64, 300])
@pytest.mark.parametrize("replicas", [1, 2])
def test_sums_of_rows(rows: int, replicas: int) -> None:
    c, d = torch.randn(replicas, 40), torch.randn(replicas, rows, 40)
    expected = c.double() - 0.5 * d.double().sum(1)
    add_rows(c, d, -0.5)
    torch.testing.assert_close(c.double(), expected, rtol=1e-5, atol=1e-5)
