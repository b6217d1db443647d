"""Watched data parallel loops: in two processes each rank is a part, in one there is none."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from batchlab import GradientNorm, NoiseScale
from batchlab.spec import UserError
from tests.integrations.loops import data, gradient, perceptron
from tests.ranks import on_each

STEPS = 3  # of two micro-batches a rank


def work(rank: int) -> tuple[float, float, int, list[str]]:
    model = DistributedDataParallel(perceptron())
    watch = NoiseScale(model)
    for k, (x, y) in enumerate(data()[rank::2]):
        if k % 2 == 0:
            with model.no_sync():
                (F.cross_entropy(model(x), y) / 2).backward()
        else:
            (F.cross_entropy(model(x), y) / 2).backward()
            watch.step()
            model.zero_grad()
    said = []
    for wrong in (
        lambda: NoiseScale(model.module),
        lambda: NoiseScale(DistributedDataParallel(perceptron()), clipped=True),
        watch._look,  # without a backward pass: nothing to fall back on
    ):
        try:
            wrong()
        except UserError as error:
            said.append(str(error))
    estimate = watch.compute().estimate
    return estimate.trace.effect, estimate.square.effect, estimate.steps, said


def test_two_ranks() -> None:
    one, other = on_each(work)
    assert one == other
    model, batches = perceptron(), data()
    taus, squares = [], []
    for k in range(STEPS):
        own = []
        for rank in (0, 1):
            x, y = (torch.cat(v) for v in zip(*batches[rank::2][2 * k : 2 * k + 2], strict=True))
            own.append(gradient(model, x, y).double())
        tau = 16 * float(torch.cov(torch.stack(own).T).trace())
        taus.append(tau)
        squares.append(float(((own[0] + own[1]) / 2).square().sum()) - tau / 32)
    assert one[:2] == pytest.approx((np.mean(taus), np.mean(squares)), rel=1e-4)
    assert one[2] == STEPS
    assert "watch the DistributedDataParallel model" in one[3][0]
    assert "clipped=True can't be undone for ranks" in one[3][1]
    assert "the batch's size can't be seen" in one[3][2]


def alone(_: int) -> tuple[list[float], list[float], str]:
    models = DistributedDataParallel(perceptron()), perceptron()
    watches = [NoiseScale(model) for model in models]
    norms = [GradientNorm(m, of=watch) for m, watch in zip(models, watches, strict=True)]
    for x, y in data():
        for model, watch, norm in zip(models, watches, norms, strict=True):
            F.cross_entropy(model(x), y).backward()
            watch.step()
            norm.step()
            assert watch._source.hand_over() is None  # type: ignore[attr-defined]  # it has it
            model.zero_grad()
    traces = [watch.compute().estimate.trace.effect for watch in watches]
    return traces, [norm.readings()[0].value for norm in norms], watches[0].told


def test_one_rank_is_its_module() -> None:
    ((traces, norms, told),) = on_each(alone, ranks=1)
    assert told == "per-example norms"
    assert traces[0] == pytest.approx(traces[1], rel=1e-6)
    assert norms[0] == pytest.approx(norms[1], rel=1e-6)
