"""Ranks of gloo, two or so, each in a process."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from multiprocessing.queues import SimpleQueue
from typing import TypeVar

import torch
import torch.distributed as dist

Told = TypeVar("Told")
RANKS = 2


def on_each(work: Callable[[int], Told], ranks: int = RANKS) -> list[Told]:
    """What `work(rank)` gives on each of them, in order; `work` is a module's own function."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    queue: SimpleQueue[tuple[int, Told]] = context.SimpleQueue()
    workers = [
        context.Process(target=_rank, args=(work, r, ranks, port, queue)) for r in range(ranks)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:  # their answers fit into the pipe
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * ranks
    told = dict(queue.get() for _ in workers)
    return [told[rank] for rank in range(ranks)]


def _rank(
    work: Callable[[int], Told],
    rank: int,
    ranks: int,
    port: int,
    told: "SimpleQueue[tuple[int, Told]]",
) -> None:
    torch.set_num_threads(1)
    where = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=where, rank=rank, world_size=ranks)
    told.put((rank, work(rank)))
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # gloo's threads may abort an interpreter that ends while they do
