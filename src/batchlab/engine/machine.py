"""Seconds and memory of a training step by micro-batch size, as this machine has them now.

Sizes are tried from the smallest on; then all that fitted take turns, so that what slows the
machine for longer than a turn slows every size. Nothing is told of a size that was not tried.

Shapes: N training samples, M of a micro-batch.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import nn

from batchlab.engine import memory
from batchlab.engine.draws import derived, epoch_order
from batchlab.engine.evaluation import kept_modes
from batchlab.engine.timing import seconds, synchronize
from batchlab.spec import UserError
from batchlab.workloads.optimizers import rebuild, set_rate
from batchlab.workloads.prepared import Prepared
from batchlab.workloads.seeding import forked, reseed

BUDGET_S = 20.0
LEAST_ROUNDS, MOST_ROUNDS = 3, 9
FULL_ROUNDS = 12  # no larger size is tried for which fewer would be left to all
TRIAL = 3  # passes that trying a size takes
TURN_S = 0.02  # short passes are repeated for so long in a turn, and divided


class Seconds(NamedTuple):
    """Over the rounds; `each` of them in order, the same rounds for every size."""

    median: float
    low: float
    high: float
    rounds: int
    each: tuple[float, ...] = ()

    @classmethod
    def of(cls, times: Sequence[float]) -> "Seconds":
        """Median, smallest and largest."""
        return cls(median(times), min(times), max(times), len(times), tuple(times))


class Size(NamedTuple):
    """One micro-batch size that was tried and fitted."""

    micro_batch: int
    compute: Seconds  # forward and backward
    loading: Seconds  # making the batch and moving it to the device
    memory_bytes: int  # of a whole training process on the device (`engine.memory`)


@dataclass(frozen=True, slots=True)
class Machine:
    """What was measured. `stopped` says why no larger size was tried."""

    device: str
    threads: int
    sizes: tuple[Size, ...]
    update: Seconds  # the optimizer's part, once a step
    stopped: str
    memory_is: str  # "measured" or "estimated"
    notes: tuple[str, ...] = field(default=())

    def step_seconds(self, batch_size: int, micro_batch: int) -> float:
        """Of a step of `batch_size` in micro-batches of a size that was tried, loading left out.

        A last micro-batch that is not full counts as a full one. Raises `ValueError` for a size
        that was not tried.
        """
        for size in self.sizes:
            if size.micro_batch == micro_batch:
                return -(-batch_size // micro_batch) * size.compute.median + self.update.median
        tried = ", ".join(str(size.micro_batch) for size in self.sizes)
        raise ValueError(f"micro-batch {micro_batch} was not tried; choose from {tried}")

    def fastest(self, batch_size: int) -> int:
        """The tried micro-batch size, `batch_size` at the most, with the fastest step of it."""
        fits = [s.micro_batch for s in self.sizes if s.micro_batch <= batch_size]
        if not fits:
            raise ValueError(f"no micro-batch size up to {batch_size} was tried")
        return min(fits, key=lambda micro: (self.step_seconds(batch_size, micro), -micro))


def machine(
    workload: Prepared,
    *,
    sizes: Sequence[int] | None = None,
    budget_s: float = BUDGET_S,
    needed: int = 1,
    cap_bytes: int | None = None,
    seed: int = 0,
    rounds: int | None = None,
) -> Machine:
    """Time and weigh training steps of the workload's own model on its device.

    `sizes` (default 1, 2, 4, ... up to N) are tried in ascending order until one does not fit in
    memory (on CUDA: is out of memory; elsewhere: is estimated at more than `cap_bytes`, half of
    what is free where not given), or would leave no time for twelve rounds (`rounds`, where these
    are fewer) within `budget_s`, which those up to `needed` may exceed. The model, its optimizer
    and the global generators are put back as they were. Raises `UserError` where a size is larger
    than the data, or none can be measured.
    Turns are taken in `rounds` rounds (9), fewer where the budget ends before. On one thread of a
    CPU seconds are the processor's, which other work on the machine does not make longer.
    """
    count = len(workload.train)
    chosen = sorted(set(sizes)) if sizes else [2**k for k in range(count.bit_length())]
    for size in chosen:
        if not 1 <= size <= count:
            raise UserError(f"micro-batch {size}: must be 1 to the {count} training samples")
    with _lent(workload) as (model, optimizer), forked(workload.device):
        reseed(derived(seed, "machine"), workload.device)
        bench = _Bench(workload, model, optimizer, seed, cap_bytes)
        return bench.run(chosen, needed, budget_s, rounds or MOST_ROUNDS)


class _Bench:
    """The model under measurement."""

    def __init__(
        self,
        workload: Prepared,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        seed: int,
        cap: int | None,
    ) -> None:
        self._workload, self._model, self._optimizer = workload, model, optimizer
        self._device = workload.device
        self._cuda = self._device.type == "cuda"
        # One thread's own time, which other processes do not add to.
        alone = self._device.type == "cpu" and torch.get_num_threads() == 1
        self._clock = time.process_time if alone else time.perf_counter
        free = memory.available(self._device)
        self._cap = cap if cap or free is None else int(free * memory.CPU_SHARE)
        self._order = epoch_order(seed, 0, len(workload.train)).to(workload.train.device)
        self._notes: list[str] = []
        self._batch: Any = None
        self._compute: dict[int, list[float]] = {}
        self._loading: dict[int, list[float]] = {}
        self._memory: dict[int, int] = {}
        self._update: list[float] = []

    def run(self, sizes: Sequence[int], needed: int, budget_s: float, rounds: int) -> Machine:
        began = time.perf_counter()
        self._load(sizes[-1] if len(sizes) == 1 else min(2, len(self._order)), 0)
        if not self._cuda:
            self._pass()
            self._optimizer.step()  # so that its state is there to be counted
        stopped = "every size up to the data was tried"
        warm: dict[int, float] = {}
        enough = min(rounds, FULL_ROUNDS)
        for size in sizes:
            round_s = sum(max(t, TURN_S) for t in warm.values())
            following = max(warm.values()) * size / max(warm) if warm else 0.0
            left = budget_s - (time.perf_counter() - began)
            lasts = enough * (round_s + following) + TRIAL * following
            if warm and size > needed and lasts > left:
                stopped = f"{size} and more would take longer than the budget of {budget_s:g} s"
                break
            why = self._too_large(size, warm)
            if why is None:
                why = self._try(size, warm)
            if why is not None:
                stopped = why
                break
        if not warm:
            raise UserError(
                f"{self._workload.name}: no micro-batch size can be measured: {stopped}"
            )
        update_s, done = seconds(self._optimizer.step, self._device), 0
        while done < LEAST_ROUNDS or (
            done < rounds and (time.perf_counter() - began) * (1 + 1 / max(1, done)) < budget_s
        ):
            for size in warm:
                self._turn(size, done, warm[size])
            self._update.append(self._repeated(self._optimizer.step, update_s))
            done += 1
        return Machine(
            device=torch.cuda.get_device_name(self._device) if self._cuda else self._device.type,
            threads=torch.get_num_threads(),
            sizes=tuple(
                Size(s, Seconds.of(self._compute[s]), Seconds.of(self._loading[s]), m)
                for s, m in self._memory.items()
            ),
            update=Seconds.of(self._update),
            stopped=stopped,
            memory_is="measured" if self._cuda else "estimated",
            notes=tuple(self._notes),
        )

    def _too_large(self, size: int, warm: dict[int, float]) -> str | None:
        """On the CPU, before it is tried: by the largest size that was, in proportion."""
        if self._cuda or self._cap is None or not warm:
            return None
        largest = max(warm)
        fixed = memory.fixed_bytes(self._model, self._optimizer)
        expected = fixed + (self._memory[largest] - fixed) * size // largest
        return None if expected <= self._cap else self._beyond(size, expected)

    def _beyond(self, size: int, expected: int) -> str:
        return (
            f"{size} would take an estimated {expected / 2**20:.0f} MiB, "
            f"more than the cap of {(self._cap or 0) / 2**20:.0f} MiB"
        )

    def _try(self, size: int, warm: dict[int, float]) -> str | None:
        """The first passes of a size: its memory, and about how long it takes."""
        try:
            self._load(size, 0)
            self._weigh(size)
            if not self._cuda and self._cap is not None and self._memory[size] > self._cap:
                return self._beyond(size, self._memory.pop(size))
            warm[size] = seconds(self._pass, self._device)
        except Exception as error:
            self._clear()
            self._batch = None
            self._memory.pop(size, None)
            if memory.is_out_of_memory(error):
                memory.release(self._device)
                return f"{size} is out of memory on {self._device}"
            if size > 1:
                raise
            first = (str(error).splitlines() or [""])[0]
            self._notes.append(f"micro-batch 1 fails ({type(error).__name__}: {first})")
        return None

    def _weigh(self, size: int) -> None:
        """Peak memory of a pass and an update; the first pass of a size, which is not timed."""
        if self._cuda:
            torch.cuda.reset_peak_memory_stats(self._device)
            self._pass()
            self._optimizer.step()
            synchronize(self._device)
            self._memory[size] = torch.cuda.max_memory_allocated(self._device)
            return
        self._clear()
        objective = self._workload.objective
        saved = memory.activation_bytes(lambda: objective(self._model, self._batch), self._model)
        self._memory[size] = memory.fixed_bytes(self._model, self._optimizer) + saved
        self._pass()

    def _turn(self, size: int, turn: int, expected: float) -> None:
        # Items may be waited for, on a disk.
        clock = self._clock if self._workload.train.in_memory else time.perf_counter
        loading = seconds(lambda: self._load(size, turn), self._device, 1, clock)
        self._loading.setdefault(size, []).append(loading)
        self._compute.setdefault(size, []).append(self._repeated(self._pass, expected))

    def _repeated(self, work: Any, expected: float) -> float:
        """Seconds of one, where short ones are repeated."""
        times = max(1, int(TURN_S / max(expected, 1e-4)))
        return seconds(work, self._device, times, self._clock)

    def _load(self, size: int, turn: int) -> None:
        """The batch of a turn: other samples every time, from one shuffled pass."""
        start = turn * size % max(1, len(self._order) - size + 1)
        self._batch = self._workload.train.batch(self._order[start : start + size])

    def _pass(self) -> None:
        self._clear()
        self._workload.objective(self._model, self._batch).backward()

    def _clear(self) -> None:
        for p in self._model.parameters():
            p.grad = None


@contextmanager
def _lent(workload: Prepared) -> Iterator[tuple[nn.Module, torch.optim.Optimizer]]:
    """The user's own model, as a second one would take memory, with an optimizer of its own.

    Its learning rate is 0, so that updates are timed and the weights stay where they are; what
    changes all the same is put back from the CPU.
    """
    model = workload.given.model
    tensors = [*model.parameters(), *model.buffers()]
    kept = [t.detach().to("cpu", copy=True) for t in tensors]
    gradients = [(p, p.grad) for p in model.parameters()]
    optimizer = rebuild(workload.given.optimizer, model, model)
    set_rate(optimizer, 0.0)
    try:
        with kept_modes(model):
            model.train()
            yield model, optimizer
    finally:
        with torch.no_grad():
            for tensor, value in zip(tensors, kept, strict=True):
                tensor.copy_(value)
        for p, gradient in gradients:
            p.grad = gradient
