"""Both noise scales at a run's point: against explicit matrices, and without a trace.

Shapes: N samples, P parameters (flattened), D directions.
"""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from batchlab.analysis.curvature import curvature
from batchlab.analysis.noise_scale import Undecided
from batchlab.analysis.noisy_quadratic import NoisyQuadratic
from batchlab.engine.curvature import measure
from batchlab.engine.general import GeneralRun
from batchlab.engine.settings import Settings
from batchlab.record import CurvatureSeries
from batchlab.spec import UserError
from batchlab.workloads.seeding import drawn
from tests import own


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=0.01)


def same(a: CurvatureSeries, b: CurvatureSeries) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def truth(run: GeneralRun, d_P: np.ndarray) -> tuple[float, float, float]:
    """B_simple, B_noise and e_max of the training set, from explicit matrices."""
    model, parameters = run.model, list(run.model.parameters())
    x, y = own.tensors()

    def flat(tensors: Any) -> Tensor:
        return torch.cat([t.flatten() for t in tensors]).double()

    g_NP = torch.stack(
        [
            flat(
                torch.autograd.grad(F.cross_entropy(model(x[i : i + 1]), y[i : i + 1]), parameters)
            )
            for i in range(len(x))
        ]
    ).numpy()
    first = torch.autograd.grad(F.cross_entropy(model(x), y), parameters, create_graph=True)
    h_PP = torch.stack(
        [
            flat(torch.autograd.grad(v, parameters, retain_graph=True, materialize_grads=True))
            for g in first
            for v in g.flatten()
        ]
    ).numpy()
    mean_P, sigma_PP, d_PP = g_NP.mean(0), np.cov(g_NP.T, bias=True), np.diag(d_P)
    dhd_PP = d_PP @ h_PP @ d_PP
    square, curved = mean_P @ d_PP @ mean_P, mean_P @ dhd_PP @ mean_P
    return (
        float((d_PP @ sigma_PP).trace() / square),
        float((dhd_PP @ sigma_PP).trace() / curved),
        float(square / curved),
    )


def adams_metric(run: GeneralRun, size: int = 8) -> np.ndarray:
    """After one more step whose squared gradient is the mean over batches of that size."""
    x, y = own.tensors()
    parameters = list(run.model.parameters())
    own_NP = [
        torch.autograd.grad(F.cross_entropy(run.model(x[i : i + 1]), y[i : i + 1]), parameters)
        for i in range(len(x))
    ]
    g_NP = [torch.stack(g) for g in zip(*own_NP, strict=True)]
    squares = [g.mean(0) ** 2 + g.var(0, correction=0) / size for g in g_NP]
    state = [
        {"exp_avg_sq": 0.999 * run.optimizer.state[p]["exp_avg_sq"] + 0.001 * square}
        for p, square in zip(parameters, squares, strict=True)
    ]
    steps = run.place.step + 1
    return np.concatenate(
        [
            (1 / ((s["exp_avg_sq"] / (1 - 0.999**steps)).sqrt() + 1e-8)).flatten().numpy()
            for s in state
        ]
    ).astype(float)


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_intervals_hold_the_explicit_values(name: str) -> None:
    workload = own.prepared(optimizer=own.sgd if name == "sgd" else adam)
    run = GeneralRun(workload, Settings(8), seed=1)
    run.advance(5)
    size = sum(p.numel() for p in run.model.parameters())
    plain, preconditioned = np.ones(size), np.ones(size) if name == "sgd" else adams_metric(run)
    told = curvature(measure(run, 12_000, seed=3, draws=20).series)
    simple, noise, rate = truth(run, preconditioned)
    for interval, value in (
        (told.simple.scale, simple),
        (told.critical(), noise),
        (told.rate(), rate),
        (told.rate(16), rate / (1 + noise / 16)),
    ):
        assert interval.low < value < interval.high < 3 * interval.low
    if name == "adam":  # the negative control: the plain metric is another
        assert not told.rate().low < truth(run, plain)[2] < told.rate().high
        as_sgd = curvature(measure(run, 12_000, seed=3, draws=20, metric="plain").series)
        assert as_sgd.rate().low < truth(run, plain)[2] < as_sgd.rate().high


class Quadratic(nn.Module):
    """The noisy quadratic model: x'Hx / 2 + x.(a sample's noise), of variance h."""

    def __init__(self, start_D: Tensor, h_D: Tensor) -> None:
        super().__init__()
        self.x_D = nn.Parameter(start_D.clone())
        self.register_buffer("h_D", h_D)

    def forward(self, noise_BD: Tensor) -> Tensor:
        h_D = self.h_D
        assert isinstance(h_D, Tensor)
        return (h_D * self.x_D**2).sum() / 2 + noise_BD @ self.x_D


def mean_loss(out_B: Tensor, _: Tensor) -> Tensor:
    return out_B.mean()


def test_the_noisy_quadratic_model() -> None:
    model, samples = NoisyQuadratic(50), 4000
    g = torch.Generator().manual_seed(0)
    h_D = torch.tensor(model.curvature_D)
    noise_ND = torch.randn(samples, 50, generator=g, dtype=torch.float64)
    noise_ND = (noise_ND - noise_ND.mean(0)) / noise_ND.std(0, correction=0) * h_D.sqrt()
    start_D = torch.randn(50, generator=g, dtype=torch.float64)
    net = Quadratic(start_D, h_D)
    data = (noise_ND, torch.zeros(samples))
    workload = own.prepared(model=net, train=data, validation=data, loss=mean_loss, metric=None)
    expected = model.noise_scale(start_D.numpy() ** 2)
    told = curvature(measure(GeneralRun(workload), 30_000, seed=1, draws=30).series)
    for interval, value, other in (
        (told.simple.scale, expected.simple, expected.noise),
        (told.critical(), expected.noise, expected.simple),
    ):
        assert interval.low < value < interval.high < 2 * interval.low
        assert not interval.low < other < interval.high


@pytest.mark.parametrize("between", [None, nn.Dropout(0.4), nn.BatchNorm1d(8)])
def test_the_run_goes_on_as_if_nothing_had_been_measured(between: nn.Module | None) -> None:
    workload = own.prepared(*([between] if between else []), optimizer=adam)
    alone = GeneralRun(workload, Settings(8), seed=2)
    run = GeneralRun(workload, Settings(8), seed=2)
    alone.advance(9)
    run.advance(4)
    weights = [v.clone() for v in run.model.state_dict().values()]
    place, draws = run.snapshot().place, drawn(torch.device("cpu"))
    first = measure(run, 300, seed=5)
    assert drawn(torch.device("cpu")) == draws
    assert all(
        torch.equal(a, b) for a, b in zip(weights, run.model.state_dict().values(), strict=True)
    )
    assert run.place == place
    assert all(p.grad is None for p in run.parameters)
    assert all(m.training for m in run.model.modules())
    torch.rand(3)  # what is measured depends on the seed alone
    assert same(measure(run, 300, seed=5).series, first.series)
    assert not same(measure(run, 300, seed=6).series, first.series)
    run.advance(5)
    for a, b in zip(run.snapshot().model.values(), alone.snapshot().model.values(), strict=True):
        assert torch.equal(a, b)
    assert any("running averages" in n for n in first.notes) is isinstance(between, nn.BatchNorm1d)


def test_micro_batches_are_the_whole_chunk() -> None:
    workload = own.prepared()
    whole, cut = GeneralRun(workload, Settings(8)), GeneralRun(workload, Settings(8, micro_batch=3))
    for a, b in zip(measure(whole, 300).series, measure(cut, 300).series, strict=True):
        assert b == pytest.approx(a, rel=1e-4, abs=1e-6)


def test_adam_before_its_first_step_and_an_unknown_optimizer() -> None:
    """At step 0 the metric is one over the root of the mean squared gradient of a batch."""
    told = measure(GeneralRun(own.prepared(optimizer=adam), Settings(8)), 300)
    # tr(D Sigma) / 8 + G'DG = sum of E g^2 / sqrt(E g^2), the sum of |g| so to say: no 1 / eps.
    assert 0 < told.series.trace_S.mean() < 1e3
    assert told.gradients == 300 * 6 + 296
    other = own.prepared(optimizer=lambda m: torch.optim.Rprop(m.parameters()))
    with pytest.raises(UserError, match="no metric is known of Rprop"):
        measure(GeneralRun(other), 300)
    assert measure(GeneralRun(other), 300, metric="plain").gradients == 1800


def test_dropouts_noise_is_in_sigma() -> None:
    plain = measure(GeneralRun(own.prepared()), 6000).series
    noisy = measure(GeneralRun(own.prepared(nn.Dropout(0.4))), 6000).series
    assert noisy.trace_S.mean() > 1.2 * plain.trace_S.mean()


def test_groups_keep_the_ratios_of_their_rates() -> None:
    def groups(model: nn.Module) -> torch.optim.Optimizer:
        first, *rest = list(model.parameters())
        return torch.optim.SGD([{"params": [first], "lr": 0.1}, {"params": rest, "lr": 0.3}])

    run = GeneralRun(own.prepared(optimizer=groups))
    size = [p.numel() for p in run.model.parameters()]
    d_P = np.repeat([1.0, 3, 3, 3], size)
    rate = curvature(measure(run, 12_000, draws=20).series).rate()
    assert rate.low < truth(run, d_P)[2] < rate.high
    assert not rate.low < truth(run, np.ones(sum(size)))[2] < rate.high


def test_half_precision_is_widened() -> None:
    x, y = own.tensors()
    half = own.prepared(
        model=own.mlp().bfloat16(), train=(x.bfloat16(), y), validation=(x.bfloat16(), y)
    )
    told = measure(GeneralRun(half), 600).series
    wide = measure(GeneralRun(own.prepared()), 600).series
    assert told.curved_square_S.mean() == pytest.approx(wide.curved_square_S.mean(), rel=0.05)


def test_dict_batches_and_a_loss_over_words() -> None:
    loader = torch.utils.data.DataLoader(own.Words(), batch_size=8, collate_fn=own.padded)
    workload = own.prepared(
        model=own.Speaker(), train=loader, validation=loader, loss=None, metric=None
    )
    told = measure(GeneralRun(workload), 600)
    assert told.gradients == 600 * 6
    assert curvature(told.series).critical().low > 0


def test_little_data_can_not_tell() -> None:
    run = GeneralRun(own.prepared(optimizer=own.sgd), Settings(20))
    run.advance(400)
    told = curvature(measure(run, 30, seed=1).series)
    with pytest.raises(Undecided, match="from zero") as raised:
        told.critical()
    assert raised.value.estimate == told.noise


def test_what_can_not_be_measured() -> None:
    run = GeneralRun(own.prepared(optimizer=adam))
    run.advance(1)
    with pytest.raises(UserError, match="samples: 29; must be 30 or more"):
        measure(run, 29)
    with pytest.raises(UserError, match="1 draws of 3 chunks"):
        measure(run, 300, draws=1)
    with pytest.raises(UserError, match="10 draws of 2 chunks"):
        measure(run, 300, chunks=2)
    with torch.no_grad():
        next(iter(run.model.parameters())).fill_(float("inf"))
    with pytest.raises(UserError, match="not finite at step 1"):
        measure(run, 300)


def test_micro_batches_without_weight_are_left_out() -> None:
    loader = torch.utils.data.DataLoader(own.Words(), batch_size=8, collate_fn=own.masked)
    workload = own.prepared(
        model=own.Speaker(),
        train=loader,
        validation=loader,
        loss=None,
        metric=None,
        weight=lambda batch: (batch["labels"] >= 0).sum(),
    )
    whole, cut = GeneralRun(workload, Settings(8)), GeneralRun(workload, Settings(8, micro_batch=1))
    for a, b in zip(measure(whole, 600).series, measure(cut, 600).series, strict=True):
        assert b == pytest.approx(a, rel=1e-3, abs=1e-5)
    with pytest.raises(UserError, match="curvature: 1 samples have no weight"):
        measure(cut, 30)
