"""Competition of per-sample gradients against autograd, sample by sample, in float64."""

from collections.abc import Callable
from math import sqrt

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from batchlab.probes.competition import (
    BINS,
    competition,
    cosine_counts,
    gram,
    grams,
    inner_products,
)
from batchlab.record import ALL, Reading

SAMPLES = 9
Pairs = dict[str, tuple[torch.Tensor, torch.Tensor]]


def network() -> tuple[nn.Sequential, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))
    model = model.double()
    return model, torch.randn(SAMPLES, 7).double(), torch.randint(4, (SAMPLES,))


def per_sample() -> dict[str, torch.Tensor]:
    """Each sample's own gradient of weight and bias together, (B, parameters), by layer."""
    model, x, y = network()

    def loss(p: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(functional_call(model, p, (x[None],)), y[None])

    parameters = {name: p.detach() for name, p in model.named_parameters()}
    each: dict[str, torch.Tensor] = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, x, y)
    layers = {
        i: torch.cat([each[f"{i}.weight"].flatten(1), each[f"{i}.bias"]], dim=1) for i in "024"
    }
    return layers | {ALL: torch.cat(list(layers.values()), dim=1)}


def pairs() -> Pairs:
    """Output gradients and inner products of the inputs of every layer, from hooks."""
    model, x, y = network()
    inputs: dict[str, torch.Tensor] = {}
    outputs: dict[str, torch.Tensor] = {}
    for name, module in model.named_children():
        if isinstance(module, nn.Linear):

            def keep(
                _: nn.Module, h: tuple[torch.Tensor], z: torch.Tensor, name: str = name
            ) -> None:
                z.retain_grad()
                inputs[name], outputs[name] = h[0], z

            module.register_forward_hook(keep)
    F.cross_entropy(model(x), y, reduction="sum").backward()
    told = {}
    for name, z in outputs.items():
        assert z.grad is not None
        told[name] = (z.grad, inner_products(inputs[name]))
    return told


def values(readings: list[Reading]) -> dict[str, float]:
    return {r.name: r.value for r in readings}


def test_gram_against_autograd() -> None:
    told, own = grams(pairs()), per_sample()
    assert list(told) == ["0", "2", "4", ALL]
    for layer, g in own.items():
        torch.testing.assert_close(told[layer], g @ g.T, rtol=1e-12, atol=1e-14)
        assert told[layer].dtype == torch.float64


@pytest.mark.parametrize("samples", [1, 256, 600])
def test_one_half_of_the_inner_products_is_the_other(samples: int) -> None:
    h = torch.randn(samples, 5, generator=torch.Generator().manual_seed(0))
    exact = h.double() @ h.double().T + 1
    torch.testing.assert_close(inner_products(h), exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda d, inner: (d @ d.T) * (inner - 1),  # without the bias
        lambda d, inner: (d @ d.T) + inner,
        lambda d, inner: gram(d / SAMPLES, inner),  # of the mean loss
    ],
)
def test_negative_control_a_wrong_gram(
    wrong: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> None:
    g = per_sample()["4"]
    assert not torch.allclose(wrong(*pairs()["4"]), g @ g.T, rtol=1e-3)


@pytest.mark.parametrize("layer", ["0", "4", ALL])
def test_readings_against_autograd(layer: str) -> None:
    g = per_sample()[layer]
    n = len(g)
    readings = competition(grams(pairs())[layer], layer)
    assert {r.layer for r in readings} == {layer}
    told = values(readings)
    mean = g.mean(0)
    covariance = torch.cov(g.T)
    trace, signal = float(covariance.trace()), float(mean @ mean)
    inner = [float(g[i] @ g[j]) for i in range(n) for j in range(i)]
    cosines = [float(F.cosine_similarity(g[i], g[j], dim=0)) for i in range(n) for j in range(i)]
    expected = {
        "diversity": n * float(g.square().sum()) / float(g.sum(0).square().sum()),
        "noise_scale": float(torch.cov(g.T, correction=0).trace()) / signal,
        "noise_trace": trace,
        "gradient_square": signal - trace / n,
        "min_inner_product": min(inner),
        "min_cosine": min(cosines),
        "mean_cosine": sum(cosines) / len(cosines),
        "negative_share": sum(v < 0 for v in inner) / len(inner),
        "zero_gradients": 0,
    }
    assert told == pytest.approx(expected, rel=1e-11, abs=1e-14)
    # n Delta = 1 + noise scale, each from its own computation, in both directions.
    assert told["diversity"] == pytest.approx(1 + expected["noise_scale"], rel=1e-12)
    assert expected["diversity"] == pytest.approx(1 + told["noise_scale"], rel=1e-12)
    assert told["diversity"] != pytest.approx(1 + trace / signal, rel=1e-3)
    # The unbiased square of the mean is the mean product of two different samples.
    assert told["gradient_square"] == pytest.approx(sum(inner) / len(inner), rel=1e-11)


def test_pooled_statistics_are_unbiased() -> None:
    """Mean 1 in each of 5 directions, variance 4: |G|^2 = 5, tr(Sigma) = 20."""
    generator = torch.Generator().manual_seed(0)
    g = 1 + 2 * torch.randn(4000, 8, 5, generator=generator, dtype=torch.float64)
    told = [values(competition(k)) for k in g @ g.mT]
    trace, signal, biased = (
        torch.tensor([one[name] for one in told], dtype=torch.float64)
        for name in ("noise_trace", "gradient_square", "noise_scale")
    )
    for estimate, truth in ((trace, 20), (signal, 5)):
        assert abs(float(estimate.mean()) - truth) < 4 * float(estimate.std()) / sqrt(len(told))
    assert float(signal.min()) < 0
    assert float(biased.mean()) < 0.8 * 20 / 5  # the mean of ratios is not their ratio


def test_known_competition() -> None:
    equal = values(competition(torch.full((4, 4), 2.0)))
    assert (equal["diversity"], equal["noise_scale"], equal["min_cosine"]) == pytest.approx(
        (1, 0, 1)
    )
    orthogonal = values(competition(torch.eye(4)))
    assert (orthogonal["diversity"], orthogonal["negative_share"]) == (4, 0)
    assert (orthogonal["min_inner_product"], orthogonal["gradient_square"]) == pytest.approx((0, 0))
    g = torch.tensor([[1.0, 0], [-1, 0], [0, 2]])
    fight = values(competition(g @ g.T))
    assert (fight["min_cosine"], fight["min_inner_product"]) == (-1, -1)
    assert fight["negative_share"] == pytest.approx(1 / 3)


def test_zero_gradients_have_no_direction() -> None:
    g = torch.tensor([[1.0, 0], [0, 0], [-1, 1], [0, 0]])
    k = g @ g.T
    told = values(competition(k))
    assert told["zero_gradients"] == 2
    assert told["min_cosine"] == told["mean_cosine"] == pytest.approx(-1 / sqrt(2))
    assert told["negative_share"] == 1
    assert int(cosine_counts(k).sum()) == 1
    # They are samples all the same: they count for the mean and its noise.
    assert told["diversity"] == pytest.approx(4 * 3 / 1)


def test_readings_that_do_not_exist_are_left_out() -> None:
    nothing = values(competition(torch.zeros(3, 3)))
    assert nothing == {
        "noise_trace": 0,
        "gradient_square": 0,
        "min_inner_product": 0,
        "zero_gradients": 3,
    }
    assert cosine_counts(torch.zeros(3, 3)).tolist() == [0] * BINS
    g = torch.tensor([[1.0], [-1.0]])
    cancel = values(competition(g @ g.T))
    assert "diversity" not in cancel
    assert cancel["min_cosine"] == -1


def test_every_pair_is_in_its_bin_once() -> None:
    angles = torch.tensor([0.0, 0.3, 1.0, 2.0, 3.0, 0.0], dtype=torch.float64)
    g = torch.stack([angles.cos(), angles.sin()], dim=1)
    scale = torch.tensor([1.0, 1e-12, 3, 1e12, 1, 1], dtype=torch.float64)
    counts = cosine_counts((g * scale[:, None]) @ (g * scale[:, None]).T)
    assert counts.dtype == torch.int64
    expected = [0] * BINS
    for i in range(6):
        for j in range(i):
            cosine = float((angles[i] - angles[j]).cos())
            expected[min(int((cosine + 1) / 2 * BINS), BINS - 1)] += 1
    assert counts.tolist() == expected
    assert counts[-1] == 3  # samples 0 and 5 are equal, and 1 is near to both


def test_what_is_no_gram_matrix() -> None:
    for wrong, says in (
        (torch.zeros(2, 3), "square"),
        (torch.ones(1, 1), "two samples"),
        (torch.full((2, 2), torch.nan), "not finite"),
    ):
        with pytest.raises(ValueError, match=says):
            competition(wrong)
        with pytest.raises(ValueError, match=says):
            cosine_counts(wrong)
    with pytest.raises(ValueError, match="same samples"):
        gram(torch.zeros(3, 2), torch.zeros(4, 4))
    with pytest.raises(ValueError, match="same samples"):
        gram(torch.zeros(3, 2), torch.zeros(3, 2))
    with pytest.raises(ValueError, match="no layers"):
        grams({})
