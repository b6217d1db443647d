"""How a device's operations are recorded, to be done again without the Python that calls for them.

On a GPU as CUDA graphs (PyTorch's notes on CUDA semantics, "CUDA Graphs"): kernels with the
addresses of their operands, all started by one call.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Protocol

import torch

Work = Callable[[], torch.Tensor]


class Recorder(Protocol):
    """How tensor operations are recorded on a device, to be done again on the same memory."""

    def run(self, work: Callable[[], None]) -> None:
        """Do the work now, in the place where such work is recorded."""

    def record(self, work: Work) -> Work:
        """Record the work without doing it; what is returned does it and gives its result, which
        the next time writes over. Raises `RuntimeError` where it can't be recorded."""


Recorders = Callable[[torch.device], Recorder | None]  # None: steps are taken as they are


class Graphs:
    """Records CUDA graphs.

    The work allocates in a memory pool of its graph's own, and runs on the stream of recordings
    before it is recorded there: libraries are then ready, and autograd knows no other stream.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, _stream(device)

    def run(self, work: Callable[[], None]) -> None:
        """After all that the current stream has been given, and before all that it will be."""
        here = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(here)
        with torch.cuda.stream(self._stream):
            work()
        here.wait_stream(self._stream)

    def record(self, work: Work) -> Work:
        """Capture it; a replay goes to the stream that is current by then."""
        gc.collect()  # a graph must not be destroyed while another is captured
        graph = torch.cuda.CUDAGraph()
        here = torch.cuda.current_stream(self._device)
        # The outer stream is put back even where the capture fails, which leaves its own behind.
        with (
            torch.cuda.stream(here),
            _own_workspaces(),
            torch.cuda.graph(graph, stream=self._stream),
        ):
            result = work()

        def replay() -> torch.Tensor:
            graph.replay()
            return result

        return replay


@lru_cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """One for all recordings: libraries keep memory for every stream that they have seen."""
    return torch.cuda.Stream(device)


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

    def run(self, work: Callable[[], None]) -> None:
        """Do it."""
        work()

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
