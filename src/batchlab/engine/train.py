"""The training loop: a spec's schedule, measured at its cadence, from any point of it.

Runs whose specs differ in seeds and rates only may go through it together, in lockstep.

Shapes: R runs, N training samples, I inputs.
"""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import ceil

import torch
from torch import nn
from torch.nn import functional as F

from batchlab.engine import mlp
from batchlab.engine.draws import epoch_order, generator
from batchlab.engine.products import Arithmetic, multiplying
from batchlab.engine.recorder import Recorders, on_cuda
from batchlab.engine.replicas import Replicas, replicas
from batchlab.engine.state import Position, RunState, RunStatus
from batchlab.probes.base import Probe
from batchlab.probes.classification import Classification
from batchlab.probes.displacement import Displacement
from batchlab.probes.gradient import GradientNorm
from batchlab.record import Record
from batchlab.spec import Matmul, Phase, TrainSpec, batch_slices
from batchlab.workloads.base import Data
from batchlab.workloads.mlp import build

SAVE_EVERY_S = 30.0  # an interrupted run repeats so much at the most
EVALUATION_ROWS = 4096  # samples a forward pass when evaluating

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
    recorders: Recorders = on_cuda,
) -> RunState:
    """Run the spec to its end, from `start` where one is given.

    `data` is in the spec's dtype. Returns the final state: `finished`, or `diverged` where a
    step's loss is not finite (the step is then `position.step`, and nothing after the last
    measurement before it is recorded). `tick` is called every few steps and may raise, in which
    case the state is handed to `save` before the exception goes on; `save` is called every
    `save_every_s` seconds besides. The same spec gives the same records however often that
    happens. `recorders` say how steps are recorded and replayed, if they are (`engine/replay.py`).
    """

    def save_one(states: list[RunState]) -> None:
        save(states[0])

    if start is not None and start.status != "running":
        return start
    starts = None if start is None else [start]
    return train_together(
        [spec],
        data,
        starts=starts,
        tick=tick,
        save=save_one,
        save_every_s=save_every_s,
        recorders=recorders,
    )[0]


def train_together(
    specs: Sequence[TrainSpec],
    data: Data,
    *,
    starts: Sequence[RunState] | None = None,
    tick: Tick = ignore,
    save: Callable[[list[RunState]], None] = ignore,
    save_every_s: float = SAVE_EVERY_S,
    recorders: Recorders = on_cuda,
) -> list[RunState]:
    """As `train` does, of specs of one `lockstep.shape` and of running `starts` at one position.

    Every state is what its spec alone would have come to, to the bit; a run that diverges leaves
    the others to go on. `tick` hears of the steps of one run.
    """
    runs = _Runs(specs, data, starts, recorders)
    saved = time.monotonic()
    if starts is None:
        runs.measure_all()
    while runs.running:
        done = runs.advance()
        try:
            tick(done)
        except BaseException:
            save(runs.states())
            raise
        if time.monotonic() - saved >= save_every_s and runs.running:
            save(runs.states())
            saved = time.monotonic()
    return runs.states()


@dataclass(slots=True)
class _Run:
    """One of the runs: what is its own."""

    spec: TrainSpec
    model: nn.Module
    initial: dict[str, torch.Tensor]
    spent: float = 0.0  # seconds before this process
    records: list[Record] = field(default_factory=list)
    diverged: Position | None = None  # where, if it has

    def displacement(self, model: nn.Module) -> Displacement:
        """Of the model from the run's initial point."""
        probe = Displacement()
        for name, parameter in model.named_parameters():
            probe.update(name, parameter, self.initial[name])
        return probe


class _Runs:
    """Runs under way, all at one position."""

    def __init__(
        self,
        specs: Sequence[TrainSpec],
        data: Data,
        starts: Sequence[RunState] | None,
        recorders: Recorders,
    ) -> None:
        self._recorders = recorders
        self._data, self._schedule, self._cadence = data, specs[0].schedule, specs[0].cadence
        self._runs = []
        for spec in specs:
            model = initial_model(spec, data)
            initial = {k: v.detach().clone() for k, v in model.named_parameters()}
            self._runs.append(_Run(spec, model, initial))
        self._began = time.monotonic()
        self._position = Position() if starts is None else replace(starts[0].position)
        self._order_of: int | None = None  # the epoch that the shuffled data are of
        self._x_RNI = data.train_x.new_empty((len(specs), *data.train_x.shape))
        self._y_RN = data.train_y.new_empty((len(specs), *data.train_y.shape))
        for run, start in zip(self._runs, starts or (), strict=False):
            run.spent, run.records = start.seconds, list(start.records)
            run.model.load_state_dict(start.group("model"))
        self._replicas = self._make_replicas()
        if starts is not None:
            self._replicas.load([start.group("optimizer") for start in starts])

    def _make_replicas(self) -> Replicas:
        return self._replicas_of([run.model for run in self._runs])

    def _replicas_of(self, models: Sequence[nn.Module]) -> Replicas:
        index = self._phase_index
        phases = [run.spec.schedule[index] for run in self._runs]
        return replicas(models, phases, self._runs[0].spec.matmul, self._recorders)

    @property
    def _phase_index(self) -> int:
        """Of the phase in force; after the end, the last one."""
        return min(self._position.phase, len(self._schedule) - 1)

    @property
    def _phase(self) -> Phase:
        """The phase in force, of the first run: the others' differ in rates and the like."""
        return self._schedule[self._phase_index]

    @property
    def _going(self) -> list[_Run]:
        return [run for run in self._runs if run.diverged is None]

    @property
    def running(self) -> bool:
        """Whether there are steps to be taken."""
        return self._position.phase < len(self._schedule) and bool(self._going)

    def states(self) -> list[RunState]:
        """Where each run stands."""
        self._replicas.settle()
        seconds = (time.monotonic() - self._began) / len(self._runs)
        ended: RunStatus = "running" if self.running else "finished"
        states = []
        for run, optimizer in zip(self._runs, self._replicas.states(), strict=True):
            tensors = {f"model/{k}": v for k, v in run.model.state_dict().items()}
            tensors |= {f"optimizer/{k}": v for k, v in optimizer.items()}
            tensors = {k: v.detach().cpu().clone() for k, v in tensors.items()}
            status: RunStatus = ended if run.diverged is None else "diverged"
            position = replace(run.diverged or self._position)
            states.append(
                RunState(tensors, position, list(run.records), status, run.spent + seconds)
            )
        return states

    def advance(self) -> int:
        """Take steps up to the next point where something is to be done; how many."""
        here, phase, samples = self._position, self._phase, len(self._data.train_x)
        self._shuffle(here.epoch)
        per_epoch, length = ceil(samples / phase.batch_size), phase.step_count(samples)
        left = min(per_epoch - here.epoch_step, length - here.phase_step)
        count = min(self._replicas.stretch, left)
        due = [k for s in self._cadence.steps if 0 < (k := s - here.step) < count]
        if due and self._replicas.divisible:
            count = due[0]
        elif due:
            self._look_ahead(due)
        with multiplying(self._runs[0].spec.matmul):
            self._replicas.steps(*self._batches(count), phase.batch_size)
        for run, bad in zip(self._runs, self._replicas.first_diverged(), strict=True):
            if bad is not None and run.diverged is None:
                run.diverged = replace(here, step=here.step + bad + 1)
        if not self._going:
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
        return self._x_RNI[:, rows], self._y_RN[:, rows]

    def _samples_after(self, count: int) -> int:
        """Samples seen once the next so many steps are taken."""
        here, size = self._position, self._phase.batch_size
        end = min((here.epoch_step + count) * size, len(self._data.train_x))
        return here.samples + end - here.epoch_step * size

    def _look_ahead(self, counts: list[int]) -> None:
        """Measure the weights after so many steps within a stretch that must not be cut there.

        The steps are taken on copies: when a run is measured leaves no trace in what it does.
        """
        here = self._position
        self._replicas.settle()
        lost: set[int] = set()
        for count in counts:
            models = [copy.deepcopy(run.model) for run in self._runs]
            ahead = self._replicas_of(models)
            ahead.steps(*self._batches(count), self._phase.batch_size)
            diverged = enumerate(ahead.first_diverged())
            lost |= {index for index, bad in diverged if bad is not None}
            ahead.settle()
            for index, (run, model) in enumerate(zip(self._runs, models, strict=True)):
                if index not in lost and run.diverged is None:
                    samples = self._samples_after(count)
                    self._record(run, [run.displacement(model)], here.step + count, samples)

    def _close(self, *, epoch: bool, phase: bool) -> None:
        """Move on to the next epoch or phase where one has ended, and measure what is due."""
        here, cadence = self._position, self._cadence
        if epoch or phase:
            here.epoch, here.epoch_step = here.epoch + 1, 0
        if phase or (epoch and here.epoch % cadence.every == 0):
            self.measure_all()
        elif here.step in cadence.steps:
            self._replicas.settle()
            for run in self._going:
                self._record(run, [run.displacement(run.model)], here.step, here.samples)
        if phase:
            before = self._phase_index
            here.phase, here.phase_step = here.phase + 1, 0
            if here.phase == len(self._schedule):
                return
            states = self._replicas.states()
            self._replicas = self._make_replicas()
            # Momentum outlives a change of rate or batch.
            kept = [r.spec.schedule[before].optimizer for r in self._runs]
            now = [r.spec.schedule[here.phase].optimizer for r in self._runs]
            self._replicas.load(
                [s if a == b else {} for s, a, b in zip(states, kept, now, strict=True)]
            )

    def _shuffle(self, epoch: int) -> None:
        """Lay the training data out in each run's order, so that a batch is a slice."""
        if self._order_of == epoch:
            return
        x_NI, y_N = self._data.train_x, self._data.train_y
        for run, x, y in zip(self._runs, self._x_RNI, self._y_RN, strict=True):
            order = epoch_order(run.spec.seed, epoch, len(x_NI)).to(x_NI.device)
            torch.index_select(x_NI, 0, order, out=x)
            torch.index_select(y_N, 0, order, out=y)
        self._order_of = epoch

    def measure_all(self) -> None:
        """Loss and accuracy on both splits, displacement, and the next step's gradient norm."""
        data, here = self._data, self._position
        self._replicas.settle()
        self._shuffle(here.epoch)
        told: list[tuple[_Run, list[Probe]]] = []
        matmul = self._runs[0].spec.matmul
        with multiplying(matmul):
            for index, run in enumerate(self._runs):
                if run.diverged is None:
                    train = classify(run.model, data.train_x, data.train_y, "train", matmul)
                    test = classify(run.model, data.test_x, data.test_y, "test", matmul)
                    moved = run.displacement(run.model)
                    told.append((run, [train, test, moved, self._gradient_norm(index)]))
        # A number is only looked at once the device has everything to do.
        for run, probes in told:
            self._record(run, probes, here.step, here.samples)

    def _gradient_norm(self, index: int) -> GradientNorm:
        """Of the first batch of the pass to come, at the batch size in force."""
        rows, run = slice(self._phase.batch_size), self._runs[index]
        x_BI, y_B = self._x_RNI[index, rows], self._y_RN[index, rows]
        probe = GradientNorm()
        for name, gradient in _gradients(run.model, x_BI, y_B, run.spec.matmul).items():
            probe.update(name, gradient)
        return probe

    def _record(self, run: _Run, probes: Sequence[Probe], step: int, samples: int) -> None:
        epoch = samples / len(self._data.train_x)
        run.records += [Record(step, epoch, samples, *r) for p in probes for r in p.compute()]


@torch.no_grad()
def classify(
    model: nn.Module,
    x_NI: torch.Tensor,
    y_N: torch.Tensor,
    split: str,
    matmul: Matmul = "float32",
) -> Classification:
    """Loss and accuracy of the model on one split, in few large products; no host-device sync."""
    probe = Classification(split)
    for rows in batch_slices(len(x_NI), EVALUATION_ROWS):
        probe.update(_logits(model, x_NI[rows], matmul), y_N[rows])
    return probe


def _logits(model: nn.Module, x_BI: torch.Tensor, matmul: Matmul) -> torch.Tensor:
    """The model's output; a perceptron's on a CPU by its products, which are the faster there."""
    layers = mlp.linear_layers(model)
    if layers is None or x_BI.is_cuda:
        with torch.autocast(x_BI.device.type, torch.bfloat16, enabled=matmul == "bf16"):
            logits: torch.Tensor = model(x_BI)
        return logits.to(x_BI.dtype)
    *_, z_RBO = mlp.forward(*mlp.stack_of_one(layers), x_BI.unsqueeze(0), Arithmetic.of(matmul))
    return z_RBO[0].to(x_BI.dtype)


def _gradients(
    model: nn.Module, x_BI: torch.Tensor, y_B: torch.Tensor, matmul: Matmul
) -> dict[str, torch.Tensor]:
    """Of the mean loss, by parameter; multiplied as the model's output is."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    layers = mlp.linear_layers(model)
    if layers is None or x_BI.is_cuda:
        loss = F.cross_entropy(_logits(model, x_BI, matmul), y_B)
        return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))
    arithmetic = Arithmetic.of(matmul)
    stacks = mlp.stack_of_one(layers)
    gradients = []
    for _, d, h in mlp.backward(*stacks, x_BI.unsqueeze(0), y_B.unsqueeze(0), arithmetic):
        gradients += [d[0].sum(0), arithmetic.product(d.mT, h)[0]]
    return dict(zip(names, reversed(gradients), strict=True))
