"""Memory of a training step: the device's own count on CUDA, an estimate on the CPU.

The estimate: parameters, gradients and optimizer state (what Adam has: two numbers a parameter,
where the optimizer keeps none to count yet, the gradients alone), the tensors that autograd saves
for the backward pass, each storage once, and the largest of these twice more, for the gradients of
an operation's output and input. Temporaries within an operation are not in it.
"""

import gc
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

CPU_SHARE = 0.5  # of the memory that is free now, used at the most


def fixed_bytes(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Parameters, buffers, gradients and the optimizer's state: whatever the batch size."""
    parameters = list(model.parameters())
    state = [v for s in optimizer.state.values() for v in s.values() if torch.is_tensor(v)]
    gradients = [p for p in parameters if p.requires_grad]
    return sum(_bytes(t) for t in [*parameters, *model.buffers(), *gradients, *state])


def activation_bytes(forward: Callable[[], torch.Tensor], model: nn.Module) -> int:
    """What autograd keeps between a forward and its backward pass, the model's own tensors apart,
    and the gradients on the way back.

    Each storage is counted as large as it is, however many tensors look into it.
    """
    own = {_address(t) for t in [*model.parameters(), *model.buffers()]}
    seen: dict[int, int] = {}
    kept: list[torch.Tensor] = []  # or another tensor would get the address of one set free

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if _address(tensor) not in own:
            seen[_address(tensor)] = tensor.untyped_storage().nbytes()
            kept.append(tensor.detach())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = forward()
    del loss
    return sum(seen.values()) + 2 * max(seen.values(), default=0)


def available(device: torch.device) -> int | None:
    """Bytes free on the device now; on the CPU of the whole machine; None where no one tells."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo") as told:
            for line in told:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device, or the CPU's allocator, had no more."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError)
        and ("out of memory" in str(error) or "can't allocate memory" in str(error))
    )


def release(device: torch.device) -> None:
    """Give back what a failed step has left behind."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _bytes(tensor: Any) -> int:
    return int(tensor.numel() * tensor.element_size())


def _address(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
