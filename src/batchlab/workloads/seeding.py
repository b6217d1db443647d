"""The global generators, for code that knows no others: a user's factory, transforms, dropout.

PyTorch's on the CPU and on the device, NumPy's and Python's are seeded together and put back.
"""

import pickle
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def forked(device: torch.device) -> Iterator[None]:
    """What is drawn within leaves no trace: the generators are put back as they were."""
    cuda = device.type == "cuda"
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    gpu = torch.cuda.get_rng_state(device) if cuda else None
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        if gpu is not None:
            torch.cuda.set_rng_state(gpu, device)


def reseed(seed: int, device: torch.device) -> None:
    """Seed them all, within `forked`; no host-device sync."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    # Not torch.manual_seed, which formats a stack trace where CUDA is there but not begun.
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        torch.cuda.default_generators[index].manual_seed(seed)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Code that draws wherever it likes, under this seed, on CUDA too; no trace is left."""
    with forked(torch.device("cuda" if torch.cuda.is_initialized() else "cpu")):
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)  # also of a device that is only begun within
        yield


def drawn(device: torch.device) -> tuple[object, ...]:
    """How far the generators have come: equal before and after code that draws nothing."""
    parts: list[object] = [random.getstate(), pickle.dumps(np.random.get_state())]
    parts.append(bytes(torch.get_rng_state().numpy()))
    if device.type == "cuda":
        parts.append(bytes(torch.cuda.get_rng_state(device).numpy()))
    return tuple(parts)
