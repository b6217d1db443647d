"""Norms of data parallel ranks against the gradients of each rank's examples, in two processes."""

import multiprocessing
import os
import socket
from multiprocessing.queues import SimpleQueue

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from batchlab.probes.ranks import RankNorms
from batchlab.spec import UserError

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


def work(rank: int, port: int, told: "SimpleQueue[tuple[int, Told]]") -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=len(SIZES)
    )
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
    told.put((rank, (parts.norms_2P.tolist(), parts.examples, parts.small, parts.big, said)))
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # gloo's threads may abort an interpreter that ends while they do


def test_two_processes() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    queue: SimpleQueue[tuple[int, Told]] = context.SimpleQueue()
    workers = [context.Process(target=work, args=(rank, port, queue)) for rank in (0, 1)]
    for worker in workers:
        worker.start()
    for worker in workers:  # their answers fit into the pipe
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    told = dict(queue.get() for _ in SIZES)
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
