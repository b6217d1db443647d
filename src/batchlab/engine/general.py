"""Training of a user's workload, from any state, by the user's own loss and optimizer.

Shapes: N training samples, B samples of a batch, M micro-batches of it.
"""

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, Literal, NamedTuple

import torch

from batchlab.engine.compiling import Verdict, decide
from batchlab.engine.draws import derived, epoch_order
from batchlab.engine.evaluation import Evaluation, evaluate
from batchlab.engine.settings import Place, Settings, Snapshot
from batchlab.spec import UserError, batch_slices
from batchlab.workloads.objective import shares, weighed
from batchlab.workloads.optimizers import set_option, set_rate
from batchlab.workloads.prepared import Prepared
from batchlab.workloads.seeding import forked, reseed

CHECK_EVERY = 32  # steps between looks at whether the losses are finite, each a host-device sync


class Micro(NamedTuple):
    """A micro-batch's own gradient, before it is joined with the others."""

    samples: int
    share: Any  # of the batch's loss: a number, or a tensor where the user gave weights
    # Of its mean loss, in the order of `parameters`; may be nan where the share is 0.
    gradients: Sequence[torch.Tensor | None]


Status = Literal["running", "diverged"]
OnStep = Callable[["GeneralRun"], None]
OnMicro = Callable[["GeneralRun", Micro], None]


class GeneralRun:
    """A run under way. The same workload, settings and seed give the same numbers, to the bit on
    one CPU kind and thread count, however often the run is stopped, restored or branched.

    `seed` fixes the data order and what training draws; `fresh` initialises by it too, else the
    run begins with the parameters that the user gave, and `start` goes on from a snapshot.
    `on_step(run)` is called when the gradients are there, before the user's `before_step`;
    `on_micro(run, micro)` with the gradient of every micro-batch before. What they draw from the
    global generators, or do to `.grad`, takes part in the run.
    `compiled`: True, False, or "auto": where it pays for `expected_steps` steps in all, by the rule
    of `engine.compiling`; `notes` says what came of it. As that is a matter of time, such a run
    repeats itself to rounding only.
    """

    def __init__(
        self,
        workload: Prepared,
        settings: Settings | None = None,
        *,
        seed: int = 0,
        fresh: bool = False,
        start: Snapshot | None = None,
        compiled: bool | Literal["auto"] = False,
        expected_steps: int = 0,
        on_step: OnStep | None = None,
        on_micro: OnMicro | None = None,
    ) -> None:
        self.workload = workload
        self.on_step, self.on_micro = on_step, on_micro
        self.seed = seed if start is None else start.seed
        self.place = Place()
        self.status: Status = "running"
        self.notes: list[str] = []
        self.loading_s = 0.0  # spent on making batches since the beginning
        self.model, self.optimizer = workload.start(derived(seed, "init") if fresh else None)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self._given = copy.deepcopy([_options(g) for g in self.optimizer.param_groups])
        self._fast: Callable[..., Any] = self.model
        self._compiled, self._expected = compiled, expected_steps
        self._verdict: Verdict | None = None
        self._losses: list[torch.Tensor] = []
        self._told: list[torch.Tensor] = []
        self._order: tuple[int, int, torch.Tensor] | None = None
        self.settings = Settings(workload.batch_size)
        if start is not None:
            self.restore(start)
        if settings is not None:
            self.change(settings)
        elif start is None:
            self.change(self.settings)

    def change(self, settings: Settings) -> None:
        """Go on with other settings; the optimizer's state outlives the change.

        Raises `UserError` where a setting is out of range or the optimizer has no such option.
        """
        count = len(self.workload.train)
        if not 1 <= settings.batch_size <= count:
            raise UserError(
                f"batch size {settings.batch_size}: must be 1 to the {count} training samples "
                f"of {self.workload.name}"
            )
        micro = settings.micro_batch
        if micro is not None and not 1 <= micro <= settings.batch_size:
            raise UserError(f"micro-batch {micro}: must be 1 to the batch {settings.batch_size}")
        for group, given in zip(self.optimizer.param_groups, self._given, strict=True):
            group.update(copy.deepcopy(given))
        if settings.learning_rate is not None:
            if not 0 < settings.learning_rate < float("inf"):
                raise UserError(
                    f"learning rate {settings.learning_rate}: must be positive and finite"
                )
            set_rate(self.optimizer, settings.learning_rate)
        for name, value in settings.options.items():
            set_option(self.optimizer, name, value)
        self.settings = settings
        self._verdict = None  # was of other shapes

    def advance(self, steps: int) -> int:
        """Take so many steps, or as many as it takes to diverge; how many were taken.

        A step whose loss is not finite ends the run: `status` is then "diverged" and `place.step`
        that step. Looked for every `CHECK_EVERY` steps and at the end, so that no other step waits
        for the device.
        """
        before = self.place.step
        with forked(self.workload.device) if self.workload.random else nullcontext():
            for taken in range(1, steps + 1):
                if self.status == "diverged":
                    break
                self._step()
                if taken % CHECK_EVERY == 0 or taken == steps:
                    self._look()
        return self.place.step - before

    def losses(self) -> torch.Tensor:
        """The training loss of every step since the last call, float64 on the CPU (steps)."""
        told, self._told = self._told, []
        return torch.cat(told) if told else torch.zeros(0, dtype=torch.float64)

    def evaluate(self, split: Literal["validation", "train"] = "validation") -> Evaluation:
        """Loss and metric on a split, in large batches; modes and generators are put back."""
        data = self.workload.validation if split == "validation" else self.workload.train
        return evaluate(self.model, self.workload, data)

    def snapshot(self) -> Snapshot:
        """A copy of everything to go on from."""
        return Snapshot(
            copy.deepcopy(self.model.state_dict()),
            copy.deepcopy(self.optimizer.state_dict()),
            replace(self.place),
            self.settings,
            self.seed,
        )

    def restore(self, snapshot: Snapshot, *, seed: int | None = None) -> None:
        """Stand where the snapshot was taken, of this run or another of the same workload.

        Another `seed` changes what comes next: the order of the rest of the pass and of all
        further ones, and the draws.
        """
        self.model.load_state_dict(snapshot.model)
        self.optimizer.load_state_dict(copy.deepcopy(snapshot.optimizer))
        self.place, self.status = replace(snapshot.place), "running"
        self.seed = snapshot.seed if seed is None else seed
        self._losses, self._told = [], []
        self._clear()
        self.change(snapshot.settings)

    def _step(self) -> None:
        """Forward and backward by micro-batch, the hooks, and the update."""
        if self.workload.random:
            reseed(derived(self.seed, "training", self.place.step), self.workload.device)
        rows = self._rows()
        micro = self.settings.micro_batch or self.settings.batch_size
        if micro >= len(rows) and self.on_micro is None:
            loss = self._forward_loss(self._batch(rows), len(rows))
            loss.backward()
            self._losses.append(loss.detach())
        else:
            self._accumulate(rows, micro)
        if self.on_step is not None:
            self.on_step(self)
        if self.workload.given.before_step is not None:
            self.workload.given.before_step(self.model)
        self.optimizer.step()
        self._clear()
        here = self.place
        here.step += 1
        here.samples += len(rows)
        here.cursor += len(rows)

    def _accumulate(self, rows: torch.Tensor, micro: int) -> None:
        """The whole batch's mean gradient as the mean of its parts', by what each is a mean of.

        With the user's own weights the batch is gone through twice, as their sum must be known. A
        part of weight 0 (no label in it counts) contributes nothing.
        """
        objective = self.workload.objective
        total: list[torch.Tensor | None] = [None] * len(self.parameters)
        parts = [rows[part] for part in batch_slices(len(rows), micro)]
        if objective.weight is None:
            share_M: list[Any] = [len(part) / len(rows) for part in parts]
            batches: Iterator[Any] = (self._batch(part) for part in parts)
        else:
            kept = [self._batch(part) for part in parts]
            weights = [objective.share(b, len(p)) for b, p in zip(kept, parts, strict=True)]
            share_M, batches = shares(weights), iter(kept)
        loss_sum: Any = 0
        for part, share, batch in zip(parts, share_M, batches, strict=True):
            loss = self._forward_loss(batch, len(part))
            loss.backward()
            loss_sum = loss_sum + weighed(loss.detach(), share)
            own = [p.grad for p in self.parameters]
            self._clear()
            if self.on_micro is not None:
                self.on_micro(self, Micro(len(part), share, own))
            total = [accumulated(t, g, share) for t, g in zip(total, own, strict=True)]
        for p, g in zip(self.parameters, total, strict=True):
            p.grad = g
        self._losses.append(loss_sum)

    def _forward_loss(self, batch: Any, samples: int) -> torch.Tensor:
        """By the compiled model where that pays, and the batch is as large as it was made for."""
        objective = self.workload.objective
        if self._compiled and samples == (self.settings.micro_batch or self.settings.batch_size):
            if self._verdict is None:
                self._verdict = self._judge(batch)
                self.notes.append(self._verdict.note)
            if self._verdict.use:
                return objective(self._fast, batch)
        return objective(self.model, batch)

    def _judge(self, batch: Any) -> Verdict:
        """Time the model and its compiled twin, which share parameters, and leave no trace."""
        buffers = [(b, b.detach().clone()) for b in self.model.buffers()]
        gradients = [p.grad for p in self.parameters]

        def passes(model: Callable[..., Any]) -> None:
            self._clear()
            self.workload.objective(model, batch).backward()

        def compiled() -> None:
            if self._fast is self.model:  # within the try, as this may fail as well
                self._fast = torch.compile(self.model, dynamic=False)
            passes(self._fast)

        self._fast = self.model
        with forked(self.workload.device):
            verdict = decide(
                partial(passes, self.model),
                compiled,
                self.workload.device,
                max(0, self._expected - self.place.step) * self._passes_a_step,
                forced=self._compiled is True,
            )
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
        for p, g in zip(self.parameters, gradients, strict=True):
            p.grad = g
        return verdict

    @property
    def _passes_a_step(self) -> int:
        size = self.settings.batch_size
        return -(-size // (self.settings.micro_batch or size))

    def _clear(self) -> None:
        """No gradients; those of parameters that the optimizer does not have included."""
        for p in self.parameters:
            p.grad = None

    def _batch(self, rows: torch.Tensor) -> Any:
        began = time.perf_counter()
        batch = self.workload.train.batch(rows)
        self.loading_s += time.perf_counter() - began
        return batch

    def _rows(self) -> torch.Tensor:
        """The next batch's samples (B), or as many as the pass still has."""
        here, size, count = self.place, self.settings.batch_size, len(self.workload.train)
        left = count - here.cursor
        if left <= 0 or (self.workload.drop_last and left < size):
            here.epoch, here.cursor = here.epoch + 1, 0
        if self._order is None or self._order[:2] != (self.seed, here.epoch):
            order = epoch_order(self.seed, here.epoch, count).to(self.workload.train.device)
            self._order = (self.seed, here.epoch, order)
        return self._order[2][here.cursor : here.cursor + size]

    def _look(self) -> None:
        """Move the losses to the host, and end the run at the first that is not finite."""
        losses = torch.stack(self._losses).cpu().double()
        bad = (~losses.isfinite()).nonzero()
        if len(bad):
            self.status = "diverged"
            self.place.step -= len(losses) - 1 - int(bad[0])
            losses = losses[: int(bad[0]) + 1]
        self._told.append(losses)
        self._losses = []


def _options(group: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in group.items() if k not in ("params", "param_names")}


def accumulated(
    total: torch.Tensor | None, part: torch.Tensor | None, share: Any
) -> torch.Tensor | None:
    """total + part * share, in place of the total; None is a gradient that is zero."""
    if part is None:
        return total
    scaled = weighed(part, share)
    return scaled if total is None else total.add_(scaled)
