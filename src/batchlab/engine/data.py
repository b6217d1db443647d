"""A workload's data where the engine wants them."""

from functools import lru_cache
from pathlib import Path

import torch

from batchlab.workloads import workload
from batchlab.workloads.base import Data


@lru_cache(maxsize=2)
def load(name: str, data_dir: Path | None, device: str, dtype: str) -> Data:
    """The workload's data on the device, moved there once a process.

    Raises `UserError` where there is no such workload or its data cannot be had.
    """
    return workload(name).load(data_dir).to(torch.device(device), getattr(torch, dtype))


def train_samples(name: str) -> int:
    """How many training samples the workload has, by its protocol: nothing is loaded."""
    return workload(name).protocol.train_samples
