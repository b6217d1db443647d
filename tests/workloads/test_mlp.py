from math import sqrt
from typing import get_args

import pytest
import torch
from torch import nn

from batchlab.spec import Initialisation, Model
from batchlab.workloads.mlp import INITIALISATIONS, build

FAN_IN, FAN_OUT = 600, 400
DEVIATION: dict[Initialisation, float] = {  # of a layer's weights, from the papers
    "glorot_uniform": sqrt(2 / (FAN_IN + FAN_OUT)),
    "glorot_normal": sqrt(2 / (FAN_IN + FAN_OUT)),
    "he_uniform": sqrt(2 / FAN_IN),
    "lecun_normal": sqrt(1 / FAN_IN),
    "torch": sqrt(1 / (3 * FAN_IN)),
}
UNIFORM: tuple[Initialisation, ...] = ("glorot_uniform", "he_uniform", "torch")
ALL: tuple[Initialisation, ...] = get_args(Initialisation)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def layer(name: Initialisation) -> nn.Linear:
    (linear,) = build(Model(hidden=(), initialisation=name), FAN_IN, FAN_OUT, seeded(1))
    assert isinstance(linear, nn.Linear)
    return linear


def has_deviation(w_OI: torch.Tensor, deviation: float) -> bool:
    """Mean 0 and this deviation, to 5 standard errors of a normal sample's."""
    n = w_OI.numel()
    near_mean = abs(w_OI.mean().item()) < 5 * deviation / sqrt(n)
    return near_mean and abs(w_OI.std().item() / deviation - 1) < 5 / sqrt(2 * n)


def weight_norm(name: Initialisation, seed: int) -> float:
    model = build(Model(hidden=(1024, 1024), initialisation=name), 784, 10, seeded(seed))
    weights = [part.weight for part in model if isinstance(part, nn.Linear)]
    return sqrt(sum(w.detach().double().square().sum().item() for w in weights))


def test_every_name_of_the_spec_is_there() -> None:
    assert tuple(INITIALISATIONS) == ALL


@pytest.mark.parametrize("name", ALL)
def test_moments_and_bounds(name: Initialisation) -> None:
    linear = layer(name)
    assert has_deviation(linear.weight, DEVIATION[name])
    bound = sqrt(3) * DEVIATION[name]  # a uniform law's, from its deviation
    reach = linear.weight.abs().max().item() / bound
    assert 0.999 < reach <= 1 + 1e-6 if name in UNIFORM else reach > 2


@pytest.mark.parametrize("name", ALL)
def test_other_laws_are_told_apart(name: Initialisation) -> None:
    others = {DEVIATION[other] for other in ALL} - {DEVIATION[name]}
    assert not any(has_deviation(layer(name).weight, other) for other in others)


@pytest.mark.parametrize("name", ALL)
def test_biases(name: Initialisation) -> None:
    bias = layer(name).bias
    if name == "torch":
        assert 0.95 < bias.abs().max().item() * sqrt(FAN_IN) <= 1 + 1e-6
    else:
        assert not bias.any()


def test_torch_default_is_that_of_linear() -> None:
    ours, theirs = layer("torch"), nn.Linear(FAN_IN, FAN_OUT)
    assert ours.weight.abs().max().item() == pytest.approx(theirs.weight.abs().max().item(), 1e-3)
    assert has_deviation(theirs.weight, DEVIATION["torch"])


@pytest.mark.parametrize(("name", "norm"), [("glorot_uniform", 43.95), ("torch", 26.19)])
def test_norm_of_the_mnist_net(name: Initialisation, norm: float) -> None:
    found = [weight_norm(name, seed) for seed in range(4)]
    assert sum(found) / len(found) == pytest.approx(norm, abs=0.1)
    # The control: a law that is not the article's is far from its norm.
    assert weight_norm("he_uniform", 0) != pytest.approx(norm, abs=1)


@pytest.mark.parametrize("hidden", [(), (7,), (7, 5, 3)])
def test_layers(hidden: tuple[int, ...]) -> None:
    model = build(Model(hidden=hidden), 4, 2, seeded(0))
    kinds = [type(part) for part in model]
    assert kinds == [nn.Linear, nn.ReLU] * len(hidden) + [nn.Linear]
    widths = [part.in_features for part in model if isinstance(part, nn.Linear)]
    assert widths == [4, *hidden]
    assert model(torch.rand(6, 4)).shape == (6, 2)
    assert all(p.requires_grad and p.dtype == torch.float32 for p in model.parameters())


def test_the_generator_alone_fixes_the_weights() -> None:
    model = Model(hidden=(5,))
    first = build(model, 4, 2, seeded(0))
    torch.set_default_dtype(torch.float64)
    try:
        before = torch.get_rng_state()
        again = build(model, 4, 2, seeded(0))
        assert torch.equal(torch.get_rng_state(), before)
    finally:
        torch.set_default_dtype(torch.float32)
    other = build(model, 4, 2, seeded(1))
    assert all(map(torch.equal, first.parameters(), again.parameters()))
    assert not torch.equal(next(first.parameters()), next(other.parameters()))
