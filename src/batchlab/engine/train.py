"""The training loop: a spec's schedule, measured at its cadence, from any point of it.

Shapes: N training samples, B samples of a batch, I inputs.
"""

import copy
import time
from collections.abc import Callable
from math import ceil

import torch
from torch import nn
from torch.nn import functional as F

from batchlab.engine.draws import epoch_order, generator
from batchlab.engine.state import Position, RunState, RunStatus
from batchlab.engine.step import Stepper, stepper
from batchlab.probes.classification import Classification
from batchlab.probes.displacement import Displacement
from batchlab.probes.gradient import GradientNorm
from batchlab.record import Reading, Record
from batchlab.spec import Phase, TrainSpec, batch_slices
from batchlab.workloads.base import Data
from batchlab.workloads.mlp import build

SAVE_EVERY_S = 30.0  # an interrupted run repeats so much at the most
EVALUATION_ROWS = 8192  # samples a forward pass when evaluating

Tick = Callable[[int], None]  # told of steps done since the last call; raises to interrupt
Save = Callable[[RunState], None]


def ignore(_: object) -> None:
    """A `Tick` or a `Save` that does nothing."""


def initial_model(spec: TrainSpec, data: Data) -> nn.Module:
    """The spec's model at its initial point, on the data's device, in the spec's dtype."""
    model = build(spec.model, data.train_x.shape[1], data.classes, generator(spec.seed, "init"))
    return model.to(data.train_x.device, data.train_x.dtype)


def train(
    spec: TrainSpec,
    data: Data,
    *,
    start: RunState | None = None,
    tick: Tick = ignore,
    save: Save = ignore,
    save_every_s: float = SAVE_EVERY_S,
) -> RunState:
    """Run the spec to its end, from `start` where one is given.

    `data` is in the spec's dtype. Returns the final state: `finished`, or `diverged` where a
    step's loss is not finite (the step is then `position.step`, and nothing after the last
    measurement before it is recorded). `tick` is called every few steps and may raise, in which
    case the state is handed to `save` before the exception goes on; `save` is called every
    `save_every_s` seconds besides. The same spec gives the same records however often that
    happens.
    """
    run = _Run(spec, data, start)
    saved = time.monotonic()
    if start is None:
        run.measure_all()
    while run.status == "running":
        done = run.advance()
        try:
            tick(done)
        except BaseException:
            save(run.state())
            raise
        if time.monotonic() - saved >= save_every_s and run.status == "running":
            save(run.state())
            saved = time.monotonic()
    return run.state()


class _Run:
    """A run under way."""

    def __init__(self, spec: TrainSpec, data: Data, start: RunState | None) -> None:
        self._spec, self._data = spec, data
        self._model = initial_model(spec, data)
        self._initial = {k: v.detach().clone() for k, v in self._model.named_parameters()}
        self._began = time.monotonic()
        self._spent = start.seconds if start else 0.0
        self._position = Position() if start is None else start.position
        self._records: list[Record] = [] if start is None else list(start.records)
        self.status: RunStatus = "running" if start is None else start.status
        self._order_of: int | None = None  # the epoch that the shuffled data are of
        self._shuffled_x = torch.empty_like(data.train_x)
        self._shuffled_y = torch.empty_like(data.train_y)
        if start is not None:
            self._model.load_state_dict(start.group("model"))
        self._stepper: Stepper = stepper(self._model, self._phase, self._spec.matmul)
        if start is not None:
            self._stepper.load(start.group("optimizer"))

    @property
    def _phase(self) -> Phase:
        """The phase in force; after the end, the last one."""
        return self._spec.schedule[min(self._position.phase, len(self._spec.schedule) - 1)]

    def state(self) -> RunState:
        self._stepper.settle()
        model = {f"model/{k}": v.detach().cpu() for k, v in self._model.state_dict().items()}
        optimizer = {f"optimizer/{k}": v.cpu() for k, v in self._stepper.state().items()}
        seconds = self._spent + time.monotonic() - self._began
        return RunState(model | optimizer, self._position, self._records, self.status, seconds)

    def advance(self) -> int:
        """Take steps up to the next point where something is to be done; how many."""
        here, phase, samples = self._position, self._phase, len(self._data.train_x)
        self._shuffle(here.epoch)
        per_epoch, length = ceil(samples / phase.batch_size), phase.step_count(samples)
        count = min(self._stepper.stretch, per_epoch - here.epoch_step, length - here.phase_step)
        due = [k for s in self._spec.cadence.steps if 0 < (k := s - here.step) < count]
        if due and self._stepper.divisible:
            count = due[0]
        elif due:
            self._look_ahead(due)
        self._stepper.steps(*self._batches(count), phase.batch_size)
        bad = self._stepper.first_diverged()
        if bad is not None:
            here.step += bad + 1
            self.status = "diverged"
            return count
        here.samples = self._samples_after(count)
        here.step += count
        here.phase_step += count
        here.epoch_step += count
        self._close(epoch=here.epoch_step == per_epoch, phase=here.phase_step == length)
        return count

    def _batches(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and labels of the next so many steps."""
        start, size = self._position.epoch_step, self._phase.batch_size
        rows = slice(start * size, (start + count) * size)
        return self._shuffled_x[rows], self._shuffled_y[rows]

    def _samples_after(self, count: int) -> int:
        """Samples seen once the next so many steps are taken."""
        here, size = self._position, self._phase.batch_size
        end = min((here.epoch_step + count) * size, len(self._data.train_x))
        return here.samples + end - here.epoch_step * size

    def _look_ahead(self, counts: list[int]) -> None:
        """Measure the weights after so many steps within a stretch that must not be cut there.

        The steps are taken on a copy: when a run is measured leaves no trace in what it does.
        """
        here = self._position
        self._stepper.settle()
        for count in counts:
            model = copy.deepcopy(self._model)
            ahead = stepper(model, self._phase, self._spec.matmul)
            ahead.steps(*self._batches(count), self._phase.batch_size)
            if ahead.first_diverged() is not None:
                return
            ahead.settle()
            self._record(self._displacement(model), here.step + count, self._samples_after(count))

    def _close(self, *, epoch: bool, phase: bool) -> None:
        """Move on to the next epoch or phase where one has ended, and measure what is due."""
        here, cadence = self._position, self._spec.cadence
        if epoch or phase:
            here.epoch, here.epoch_step = here.epoch + 1, 0
        if phase or (epoch and here.epoch % cadence.every == 0):
            self.measure_all()
        elif here.step in cadence.steps:
            self._stepper.settle()
            self._record(self._displacement(self._model), here.step, here.samples)
        if phase:
            before = self._phase.optimizer
            here.phase, here.phase_step = here.phase + 1, 0
            if here.phase == len(self._spec.schedule):
                self.status = "finished"
                return
            state = self._stepper.state()
            self._stepper = stepper(self._model, self._phase, self._spec.matmul)
            if self._phase.optimizer == before:  # momentum outlives a change of rate or batch
                self._stepper.load(state)

    def _shuffle(self, epoch: int) -> None:
        """Lay the training data out in the epoch's order, so that a batch is a slice."""
        if self._order_of == epoch:
            return
        order = epoch_order(self._spec.seed, epoch, len(self._data.train_x))
        order = order.to(self._data.train_x.device)
        torch.index_select(self._data.train_x, 0, order, out=self._shuffled_x)
        torch.index_select(self._data.train_y, 0, order, out=self._shuffled_y)
        self._order_of = epoch

    def measure_all(self) -> None:
        """Loss and accuracy on both splits, displacement, and the next step's gradient norm."""
        data, here = self._data, self._position
        self._stepper.settle()
        readings = evaluate(self._model, data.train_x, data.train_y, "train")
        readings += evaluate(self._model, data.test_x, data.test_y, "test")
        readings += self._displacement(self._model) + self._gradient_norm()
        self._record(readings, here.step, here.samples)

    def _displacement(self, model: nn.Module) -> list[Reading]:
        probe = Displacement()
        for name, parameter in model.named_parameters():
            probe.update(name, parameter, self._initial[name])
        return probe.compute()

    def _gradient_norm(self) -> list[Reading]:
        """Of the first batch of the pass to come, at the batch size in force."""
        self._shuffle(self._position.epoch)
        size = self._phase.batch_size
        loss = F.cross_entropy(self._model(self._shuffled_x[:size]), self._shuffled_y[:size])
        names, parameters = zip(*self._model.named_parameters(), strict=True)
        probe = GradientNorm()
        for name, gradient in zip(names, torch.autograd.grad(loss, parameters), strict=True):
            probe.update(name, gradient)
        return probe.compute()

    def _record(self, readings: list[Reading], step: int, samples: int) -> None:
        epoch = samples / len(self._data.train_x)
        self._records += [Record(step, epoch, samples, *r) for r in readings]


@torch.no_grad()
def evaluate(model: nn.Module, x_NI: torch.Tensor, y_N: torch.Tensor, split: str) -> list[Reading]:
    """Loss and accuracy of the model on one split, in few large products."""
    probe = Classification(split)
    for rows in batch_slices(len(x_NI), EVALUATION_ROWS):
        probe.update(model(x_NI[rows]), y_N[rows])
    return probe.compute()
