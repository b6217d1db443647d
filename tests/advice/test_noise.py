"""The noise scale along a run, against a model whose tr Sigma and |G|^2 are known."""

import numpy as np
import pytest
import torch

from batchlab.advice.noise import CHUNKS, MOST, MOST_IN_CHUNKS, NoiseAlong
from batchlab.analysis.noise_scale import estimate
from batchlab.engine.general import GeneralRun
from batchlab.engine.settings import Settings
from batchlab.record import ALL, NoiseSeries
from batchlab.spec import UserError
from batchlab.workloads.prepare import prepare
from batchlab.workloads.prepared import Prepared
from tests import own
from tests.advice import quadratic

STILL = 1e-12  # a rate at which weights stay where they are


def along(workload: Prepared, steps: int, size: int, micro: int | None = None) -> NoiseAlong:
    run = GeneralRun(workload, Settings(size, learning_rate=STILL, micro_batch=micro))
    noise = NoiseAlong(run)
    noise.begin(True)
    run.advance(steps)
    noise.end()
    return noise


def test_chunks_find_the_quadratic_models_scale() -> None:
    noise = along(prepare(quadratic.workload()), 400, 64)
    assert noise.kind == "chunks"
    told = estimate(noise.series()[ALL], block=1)
    h_D = 1.0 / np.arange(1, quadratic.DIRECTIONS + 1)
    # The gradient is h (x - z): covariance H, and h at a distance of 1.
    assert told.trace.effect == pytest.approx(h_D.sum(), rel=0.03)
    assert told.square.effect == pytest.approx((h_D**2).sum(), rel=0.03)
    assert told.scale.low < h_D.sum() / (h_D**2).sum() < told.scale.high
    raw = told.square.effect + told.trace.effect / 64 * CHUNKS  # a chunk's norm, not corrected
    assert raw != pytest.approx((h_D**2).sum(), rel=0.2)


def test_chunks_and_single_examples_agree() -> None:
    data = own.tensors(2000)
    hooks = along(own.prepared(train=data), 200, 32)
    assert hooks.kind == "per-example"
    chunks = along(own.prepared(train=data), 200, 32, micro=16)  # accumulation has no hooks
    assert chunks.kind == "chunks"
    one, other = (estimate(n.series()[ALL], block=1) for n in (hooks, chunks))
    assert one.trace.effect == pytest.approx(other.trace.effect, rel=0.1)
    assert set(hooks.series()) == set(chunks.series())


def test_what_only_a_pass_shows_is_measured_by_chunks_and_less_often() -> None:
    twice = torch.nn.Linear(own.INPUTS, own.INPUTS)
    head = torch.nn.Linear(own.INPUTS, own.CLASSES)
    workload = own.prepared(model=torch.nn.Sequential(twice, torch.nn.Tanh(), twice, head))
    run = GeneralRun(workload, Settings(8, learning_rate=STILL))
    noise = NoiseAlong(run)
    assert (noise.kind, noise.most) == ("per-example", MOST)
    noise.begin(True)
    run.advance(3)
    assert (noise.kind, noise.most) == ("chunks", MOST_IN_CHUNKS)
    assert noise.steps == [1, 2]  # the first one showed it
    noise.end()


def test_adam_is_measured_by_its_metric_from_the_second_step_on() -> None:
    def adam(model: torch.nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Adam(model.parameters(), lr=0.1)

    plain, scaled = (
        own.prepared(train=own.tensors(2000)),
        own.prepared(train=own.tensors(2000), optimizer=adam),
    )
    noise = along(scaled, 50, 32)
    assert noise.kind == "preconditioned chunks"
    assert noise.steps == list(range(1, 50))
    told = estimate(noise.series()[ALL])
    assert told.trace.effect > 3 * estimate(along(plain, 50, 32).series()[ALL]).trace.effect


def test_measuring_leaves_the_run_as_it_is() -> None:
    workload = own.prepared(train=own.tensors(400))
    ends = []
    for measured in (False, True):
        run = GeneralRun(workload, Settings(8), seed=1)
        noise = NoiseAlong(run)
        noise.begin(measured)
        run.advance(20)
        noise.end()
        ends.append(run.losses())
    assert torch.equal(*ends)


def test_steps_that_are_not_measured_leave_no_trace() -> None:
    run = GeneralRun(prepare(quadratic.workload()), Settings(16))
    noise = NoiseAlong(run)
    assert noise.series() == {}
    for measured in (True, False, True):
        noise.begin(measured)
        run.advance(3)
    assert noise.steps == [0, 1, 2, 6, 7, 8]
    assert isinstance(noise.series()[ALL], NoiseSeries)
    assert len(noise.series()[ALL].trace_S) == 6


def test_a_last_batch_of_one_example_is_passed_over() -> None:
    noise = along(own.prepared(train=own.tensors(21)), 12, 4)  # 4, 4, 4, 4, 4, 1 twice
    assert noise.kind == "per-example"
    assert noise.steps == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10]


class Idle(torch.nn.Module):
    """A model with a parameter that no gradient reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.idle = own.mlp(), torch.nn.Parameter(torch.zeros(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        told: torch.Tensor = self.body(x)
        return told


def test_a_parameter_without_a_gradient_does_not_keep_adam_from_being_measured() -> None:
    def adam(model: torch.nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Adam(model.parameters(), lr=STILL)

    noise = along(own.prepared(model=Idle(), optimizer=adam), 5, 8)
    assert noise.steps == [1, 2, 3, 4]
    assert noise.series()["idle"].trace_S.tolist() == [0] * 4


def test_what_the_optimizer_does_not_have_does_not_count() -> None:
    def head(model: torch.nn.Module) -> torch.optim.Optimizer:
        assert isinstance(model, torch.nn.Sequential)
        return torch.optim.SGD(model[-1].parameters(), lr=STILL)

    for micro in (None, 4):
        part = along(own.prepared(optimizer=head), 4, 8, micro).series()
        whole = along(own.prepared(), 4, 8, micro).series()
        assert set(part) == {ALL, "2.weight", "2.bias"}
        for name in ("2.weight", "2.bias"):
            assert part[name].trace_S == pytest.approx(whole[name].trace_S, rel=1e-4)
        both = part["2.weight"].square_S + part["2.bias"].square_S
        assert part[ALL].square_S == pytest.approx(both)


def normed(before_step: object = None) -> Prepared:
    model = torch.nn.Sequential(
        torch.nn.Linear(own.INPUTS, 8),
        torch.nn.BatchNorm1d(8),
        torch.nn.Dropout(0.2),
        torch.nn.Linear(8, own.CLASSES),
    )
    return own.prepared(model=model, train=own.tensors(400), before_step=before_step)


def test_batch_norm_is_measured_by_pairs_of_whole_batches() -> None:
    gradients: list[torch.Tensor] = []

    def keep(model: torch.nn.Module) -> None:
        there = [p.grad for p in model.parameters() if p.grad is not None]
        gradients.append(torch.cat([g.flatten() for g in there]))

    torch.manual_seed(0)
    noise = along(normed(keep), 600, 8)
    assert noise.kind == "pairs of batches"
    assert noise.steps == list(range(600))
    assert noise.beside == 600 * 8
    told = estimate(noise.series()[ALL], block=1)
    batch_SP = torch.stack(gradients).double()
    # At weights that stay, the spread of whole batches' gradients is tau / B, what N leaves of it.
    spread = float(batch_SP.var(0).sum())
    assert told.trace.effect / 8 * (1 - 8 / 400) == pytest.approx(spread, rel=0.1)
    assert told.square.effect == pytest.approx(float(batch_SP.mean(0).square().sum()), rel=0.3)


@pytest.mark.parametrize("size", [2, 8, 9])  # chunks would be of one sample, which has no spread
def test_pairs_leave_the_run_as_it_is(size: int) -> None:
    torch.manual_seed(0)
    workload, ends = normed(), []
    for measured in (False, True):
        run = GeneralRun(workload, Settings(size), seed=1)
        noise = NoiseAlong(run)
        noise.begin(measured)
        run.advance(20)
        noise.end()
        ends.append((run.losses(), *run.model.buffers()))
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_one_example_has_no_spread() -> None:
    with pytest.raises(UserError, match="batch_size: got 1; must be 2 or more"):
        NoiseAlong(GeneralRun(own.prepared(), Settings(1)))
