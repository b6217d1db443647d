"""What this machine is and what it can do: its name, its product rate, its bandwidth."""

import os
import platform
from collections.abc import Callable
from pathlib import Path

import torch

from batchlab.backends.base import cores
from batchlab.engine.products import product
from batchlab.engine.timing import seconds
from batchlab.speed.limit import FLOAT32, Rates

SIDE = 1024  # rows and columns of the product that gives the rate
SWEEP = 2**24  # numbers a read goes over: so many that starting it costs nothing
REPEATS = 3


def describe(device: torch.device) -> dict[str, str | int]:
    """The machine as the command names it: cpu, cores, threads, torch, device."""
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        "cpu": _cpu(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "device": where,
    }


def load() -> float | None:
    """Programs that wanted a core in the last minute, on average; `None` where no one counts."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def _cpu() -> str:
    """The processor's name where the system tells it."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text().splitlines() if told.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def measure(count: int, device: torch.device) -> Rates:
    """Rates of the hardware now, for a model of `count` parameters, with all of torch's threads.

    Each is the best of several ways and repeats, so that a neighbour's load lowers it as little as
    can be: a limit measured too low would flatter whatever is held against it.
    """
    a, b = torch.randn(SIDE, SIDE, device=device), torch.randn(SIDE, SIDE, device=device)
    products = [lambda: torch.mm(a, b), lambda: product(a[None], b[None])]
    fastest = min(_seconds(one, device) for one in products)
    # As large as the weights, because it is the cache these fit into that a step is served from.
    array, other = torch.zeros(count, device=device), torch.zeros(count, device=device)
    times = max(1, SWEEP // count)
    sweeps = array.expand(times, count)  # the same memory read so many times over
    read = times * count * FLOAT32 / _seconds(lambda: sweeps.sum(1), device)
    update = 3 * count * FLOAT32 / _seconds(lambda: array.add_(other, alpha=-0.5), device)
    return Rates(2 * SIDE**3 / fastest, max(read, update))


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """The shortest time it takes, the first apart."""
    work()
    return min(seconds(work, device) for _ in range(REPEATS))
