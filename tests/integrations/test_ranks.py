"""A watched data parallel loop in two processes: each rank is a part, the same on both."""

import multiprocessing
import os
import socket
from multiprocessing.queues import SimpleQueue

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from batchlab import NoiseScale
from batchlab.spec import UserError
from tests.integrations.loops import data, gradient, perceptron

STEPS = 3  # of two micro-batches a rank


def work(rank: int, port: int, told: "SimpleQueue[tuple[float, float, int, str]]") -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
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
    told.put((estimate.trace.effect, estimate.square.effect, estimate.steps, said))
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # gloo's threads may abort an interpreter that ends while they do


def test_two_ranks() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    queue: SimpleQueue[tuple[float, float, int, str]] = context.SimpleQueue()
    workers = [context.Process(target=work, args=(rank, port, queue)) for rank in (0, 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    one, other = queue.get(), queue.get()
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
