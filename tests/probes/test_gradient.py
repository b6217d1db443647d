"""The norm of a gradient against autograd."""

import pytest
import torch

from batchlab.probes.gradient import GradientNorm


def test_against_autograd() -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    model(torch.randn(5, 3)).square().sum().backward()
    assert model.weight.grad is not None
    assert model.bias.grad is not None
    first, second = GradientNorm(), GradientNorm()
    first.update("weight", model.weight.grad)
    second.update("bias", model.bias.grad)
    first.merge(second)
    told = {r.layer: r.value for r in first.compute()}
    everything = torch.cat([model.weight.grad.flatten(), model.bias.grad]).double()
    assert told["all"] == pytest.approx(float(everything.norm()), rel=1e-12)
    assert told["weights"] == told["weight"] == pytest.approx(float(model.weight.grad.norm()))
    assert told["biases"] < told["all"]
