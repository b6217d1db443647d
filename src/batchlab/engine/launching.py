"""Whether kernels of our own can be built and started on this machine's GPU.

They are written in Triton, which PyTorch's builds for CUDA bring, and which wants a C compiler with
Python's headers for what starts them.
"""

import warnings
from functools import cache
from importlib.util import find_spec

import torch

TRITON = find_spec("triton") is not None


@cache
def can_launch() -> bool:
    """Whether a small kernel can be built here and runs; where not, a `RuntimeWarning` says so."""
    if not TRITON:
        return False
    try:
        from batchlab.engine.pointwise_kernels import launch_rectify

        small = torch.zeros(1, 16, device="cuda")
        launch_rectify(small, small[0])
    except Exception as error:  # of a compiler, a loader, a driver
        first = (str(error).splitlines() or [""])[0]
        warnings.warn(
            f"small steps and trials go without kernels for CUDA, several times slower: {first}",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return True
