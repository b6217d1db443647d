"""How long work takes, the device's part included."""

import time
from collections.abc import Callable

import torch


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was told to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(
    work: Callable[[], object],
    device: torch.device,
    times: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """How long it takes once, of so many times in a row."""
    synchronize(device)
    began = clock()
    for _ in range(times):
        work()
    synchronize(device)
    return (clock() - began) / times
