"""Norms of data parallel ranks against the gradients of each rank's examples, in two processes."""

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from batchlab.probes.ranks import RankNorms
from batchlab.spec import UserError
from tests.ranks import on_each

SIZES = [5, 3]


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()


def batch(rank: int, step: int) -> torch.Tensor:
    torch.manual_seed(10 * step + rank + 1)
    return torch.randn(SIZES[rank], 4).double()


def loss(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    told: torch.Tensor = model(x).square().sum(1).mean()
    return told


Told = tuple[list[list[float]], int, float, float, str]


def work(rank: int) -> Told:
    parallel = DistributedDataParallel(model())
    ranks = RankNorms(parallel)
    for step in range(2):  # buckets are built anew after the first
        parallel.zero_grad()
        with parallel.no_sync():  # accumulates, and is not seen by itself
            (loss(parallel, batch(rank, step)) / 2).backward()
        (loss(parallel, batch(rank, step)) / 2).backward()
        parts = ranks.take(SIZES)
    try:
        ranks.take(SIZES)
    except UserError as error:
        said = str(error)
    return parts.norms_2P.tolist(), parts.examples, parts.small, parts.big, said


def test_two_processes() -> None:
    told = on_each(work)
    assert told[0] == told[1]
    norms, examples, small, big, said = told[0]
    alone = model()
    own = [torch.autograd.grad(loss(alone, batch(r, 1)), list(alone.parameters())) for r in (0, 1)]
    for p, (a, b) in enumerate(zip(*own, strict=True)):
        expected = [float(((a.norm() ** 2 + b.norm() ** 2) / 2).sqrt()), float((a + b).norm() / 2)]
        assert [norms[0][p], norms[1][p]] == pytest.approx(expected, rel=1e-10)
    assert examples == sum(SIZES)
    assert (1 / small, 1 / big) == pytest.approx((1 / 10 + 1 / 6, 1 / 20 + 1 / 12))
    assert "not all gradients were seen" in said
