"""How a device's operations are recorded, to be done again without the Python that calls for them.

On a GPU as CUDA graphs (PyTorch's notes on CUDA semantics, "CUDA Graphs"): kernels with the
addresses of their operands, all started by one call.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch

Work = Callable[[], torch.Tensor]


class Recorder(Protocol):
    """How tensor operations are recorded on a device, to be done again on the same memory."""

    def record(self, work: Work) -> Work:
        """Record the work without doing it; what is returned does it and gives its result, which
        the next time writes over. Raises `RuntimeError` where it can't be recorded."""


Recorders = Callable[[torch.device], Recorder | None]  # None: steps are taken as they are


class Graphs:
    """Records CUDA graphs, of work on the current stream, which must not be the device's default.

    The work allocates in a memory pool of its graph's own. It must have been done on the same
    stream before it is recorded: libraries are then ready, and autograd knows no other stream.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def record(self, work: Work) -> Work:
        """Capture it; a replay goes to the stream that is current by then."""
        graph = torch.cuda.CUDAGraph()
        here = torch.cuda.current_stream(self._device)
        # The outer stream is put back even where the capture fails, which leaves its own behind.
        with (
            torch.cuda.stream(here),
            _nothing_collected(),
            _own_workspaces(),
            torch.cuda.graph(graph, stream=here),
        ):
            result = work()

        def replay() -> torch.Tensor:
            graph.replay()
            return result

        return replay


@contextmanager
def _nothing_collected() -> Iterator[None]:
    """A graph must not be destroyed while another is captured, nor memory be freed."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def _own_workspaces() -> Iterator[None]:
    """What cuBLAS works in is allocated within, in the graph's own memory.

    Else it is shared by all graphs of a stream and freed with the first of them, under the others
    (pytorch/pytorch#193402). PyTorch's own graphs (torch._inductor.cudagraph_trees) do the same.
    """
    torch._C._cuda_clearCublasWorkspaces()
    try:
        yield
    finally:
        torch._C._cuda_clearCublasWorkspaces()


class Again:
    """Records nothing: a replay is the work itself. What a recorder is compared with."""

    def record(self, work: Work) -> Work:
        """The work itself."""
        return work


def on_cuda(device: torch.device) -> Recorder | None:
    """Graphs on a GPU; a CPU has no such thing."""
    return Graphs(device) if device.type == "cuda" else None


def never(_: torch.device) -> Recorder | None:
    """Steps are taken as they are."""
    return None


def again(_: torch.device) -> Recorder | None:
    """Steps are taken one by one, in the places where they would be recorded."""
    return Again()
