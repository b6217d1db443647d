"""Steps that are recorded once and replayed, on a GPU: `TOGETHER` at a time, or one by one.

A step of a small model is twenty operations and more, and the host takes longer to start them than
a GPU to do them.

Every batch is copied to one place before a step, whether the step is replayed or not: a product's
last digits may depend on how its factors lie in memory, and so they depend neither on what is
recorded nor on where a run was interrupted.

Shapes: N samples of a stretch of steps, B of a batch, I inputs.
"""

import warnings
from dataclasses import dataclass
from functools import partial

import torch

from batchlab.engine.recorder import Recorder, Recorders, Work
from batchlab.engine.step import Stepper
from batchlab.spec import batch_slices

TOGETHER = 16  # steps of a graph: starting it then costs a step next to nothing
WARM_UP = 16  # steps taken as they are: PyTorch asks for three, and a short phase needs no graph
STRETCH = 256  # steps between two looks at the losses, each of which waits for the device


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
        self.stretch = STRETCH
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
                batches(x, y)
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


def replayed(one: Stepper, recorders: Recorders, device: torch.device) -> Stepper:
    """The stepper with its steps replayed where they can be, else as it is."""
    recorder = recorders(device) if one.recordable and one.divisible else None
    return one if recorder is None else Replayed(one, recorder)
