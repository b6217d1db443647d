"""Steps that are recorded once and replayed: on a GPU as CUDA graphs, started by one call each.

A step of a small model is some thirty operations, and the host takes longer to start them than a
GPU to do them. A graph holds `TOGETHER` steps; what is left of a stretch is replayed step by step.

Every batch is copied to one place before a step, whether the step is replayed or not: a product's
last digits may depend on how its factors lie in memory, and so they depend neither on what is
recorded nor on where a run was interrupted.

Shapes: N samples of a stretch of steps, B of a batch, I inputs.
"""

import gc
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Protocol

import torch
from torch import nn

from batchlab.engine.step import Stepper
from batchlab.spec import Phase, batch_slices

TOGETHER = 16  # steps of a graph: starting it then costs a step next to nothing
WARM_UP = 16  # steps taken as they are: PyTorch asks for three, and a short phase needs no graph
# Weights times samples of a batch up to which the host is the slower one. By reckoning, not by
# measurement: 6 operations each are 0.1 ms at 16 TFLOP/s, and thirty starts take about as long.
LARGEST = 2**28

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
    """Records CUDA graphs, as PyTorch's notes on CUDA semantics describe it ("CUDA Graphs").

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


@dataclass(frozen=True, slots=True, eq=False)
class _Recording:
    """Steps on samples that are copied to where they were recorded."""

    x_NI: torch.Tensor
    y_N: torch.Tensor
    replay: Work

    def take(self, x_NI: torch.Tensor, y_N: torch.Tensor) -> torch.Tensor:
        """The steps' signs."""
        self.x_NI.copy_(x_NI)
        self.y_N.copy_(y_N)
        return self.replay().clone()


class Replayed(Stepper):
    """Another stepper's steps, of which all but the first are recorded and replayed.

    A batch that an epoch leaves too short is taken as it is, and so is everything, with a warning,
    where recording fails.
    """

    def __init__(self, one: Stepper, recorder: Recorder) -> None:
        super().__init__()
        self.stretch = one.stretch
        self._one, self._recorder = one, recorder
        self._recordable = True
        self._size = self._warm = 0
        self._recordings: dict[int, _Recording] = {}  # by how many steps they are

    def steps(self, x_NI: torch.Tensor, y_N: torch.Tensor, size: int) -> None:
        """As many at a time as are recorded together."""
        if size != self._size:
            self._forget()
            self._size = size
            self._x_BI = x_NI.new_empty((size, *x_NI.shape[1:]))
            self._y_B = y_N.new_empty(size)
        begin = 0
        while begin < len(x_NI):
            whole = (len(x_NI) - begin) // size
            count = TOGETHER if whole >= TOGETHER and self._warm >= WARM_UP else 1
            x, y = x_NI[begin : begin + count * size], y_N[begin : begin + count * size]
            recording = self._recording(count, x, y) if whole else None
            if recording is not None:
                self._signs.append(recording.take(x, y))
            else:
                batches = self._batches if whole else partial(self._one.steps, size=size)
                self._recorder.run(partial(batches, x, y))
                self._signs += self._one.signs()
                self._warm += 1
            begin += count * size

    def _batches(self, x_NI: torch.Tensor, y_N: torch.Tensor) -> None:
        """Steps on whole batches, each at its place."""
        for rows in batch_slices(len(x_NI), self._size):
            self._x_BI.copy_(x_NI[rows])
            self._y_B.copy_(y_N[rows])
            self._one.steps(self._x_BI, self._y_B, self._size)

    def _recording(self, count: int, x_NI: torch.Tensor, y_N: torch.Tensor) -> _Recording | None:
        """Of so many steps, made where there is none yet; None while they are taken as they are."""
        if self._warm < WARM_UP or not self._recordable:
            return None
        if count not in self._recordings:
            x, y = x_NI.clone(), y_N.clone()

            def work() -> torch.Tensor:
                self._batches(x, y)
                return torch.cat(self._one.signs())

            try:
                self._recordings[count] = _Recording(x, y, self._recorder.record(work))
            except RuntimeError as error:
                self._one.signs()  # of steps that were never taken
                self._recordings.clear()
                self._recordable = False
                first = (str(error).splitlines() or [""])[0]
                warnings.warn(f"steps are not replayed: {first}", RuntimeWarning, stacklevel=2)
                return None
        return self._recordings[count]

    def _forget(self) -> None:
        self._recordings.clear()
        self._warm = 0

    def settle(self) -> None:
        """As the other does."""
        self._one.settle()

    def state(self) -> dict[str, torch.Tensor]:
        """The other's."""
        return self._one.state()

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """The optimizer's tensors are others from here on: what was recorded is gone."""
        self._forget()
        self._one.load(state)


def replayed(one: Stepper, model: nn.Module, phase: Phase, recorders: Recorders) -> Stepper:
    """The stepper with its steps replayed where they can be and where it pays, else as it is."""
    weights = sum(p.numel() for p in model.parameters())
    if not one.divisible or weights * phase.batch_size > LARGEST:
        return one
    recorder = recorders(next(model.parameters()).device)
    return one if recorder is None else Replayed(one, recorder)
