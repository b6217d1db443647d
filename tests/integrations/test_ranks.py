"""A watched data parallel loop in two processes: each rank is a part, the same on both."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from batchlab import NoiseScale
from batchlab.spec import UserError
from tests.integrations.loops import data, gradient, perceptron
from tests.ranks import on_each

STEPS = 3  # of two micro-batches a rank


def work(rank: int) -> tuple[float, float, int, str]:
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
    try:
        NoiseScale(model.module)
    except UserError as error:
        said = str(error)
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
    assert "watch the DistributedDataParallel model" in one[3]
