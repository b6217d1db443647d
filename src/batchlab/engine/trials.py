"""Gradient trials: many passes over fresh samples, at every batch size, from the same weights.

Trials are independent of each other: on a CPU every thread takes one at a time with its arithmetic
unthreaded, so that the records do not depend on the number of threads; on a GPU many go side by
side as replicas.
"""

import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import accumulate, product
from math import ceil
from typing import Self

import torch

from batchlab.engine import mlp
from batchlab.engine.measure import Keep, Measure, Measured
from batchlab.engine.state import RunState
from batchlab.engine.train import SAVE_EVERY_S, Tick, ignore, initial_model
from batchlab.probes.competition import cosine_bins
from batchlab.probes.values import ValueHistogram
from batchlab.record import ALL, PER_SAMPLE, BinRecord, TrialRecord
from batchlab.spec import TrainSpec, TrialsSpec, UserError
from batchlab.workloads.base import Data

STACK = 0.3  # of a GPU's memory, for the trials side by side: two workers may be at them at once
COSINES = "cosines"

Passes = list[tuple[int, int]]  # (draw, order) of trials side by side


@dataclass(slots=True)
class TrialState:
    """The passes done so far: what was measured on each, and the raw values of all together.

    Passes are counted draw by draw, order by order.
    """

    done: int = 0
    records: list[TrialRecord] = field(default_factory=list)
    histograms: dict[str, ValueHistogram] = field(default_factory=dict)  # by `B/convention/layer`
    cosines: torch.Tensor | None = None  # counts of the samples' own gradients' pairwise cosines
    seconds: float = 0.0

    def bins(self) -> list[BinRecord]:
        """The histograms as records."""
        told = []
        # In one order, whether they came from a checkpoint, which has its own, or not.
        for name, histogram in sorted(self.histograms.items()):
            size, convention, layer = name.split("/")
            told += [BinRecord(int(size), convention, layer, *b) for b in histogram.compute()]
        if self.cosines is not None:
            told += [BinRecord(1, PER_SAMPLE, ALL, *b) for b in cosine_bins(self.cosines)]
        return told

    def add(self, measured: Measured) -> None:
        """Take in the passes that follow these."""
        self.done += measured.passes
        self.records += measured.records
        for name, histogram in measured.histograms.items():
            self.histograms.setdefault(name, ValueHistogram()).merge(histogram)
        if measured.cosines is not None:
            self.cosines = measured.cosines + (0 if self.cosines is None else self.cosines)

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The part of the state that is tensors."""
        counts = {name: histogram.counts for name, histogram in self.histograms.items()}
        return counts if self.cosines is None else counts | {COSINES: self.cosines}

    def meta(self) -> dict[str, str]:
        """The rest of it, as text; floats survive the round trip to the bit."""
        records = json.dumps(self.records)
        return {"done": str(self.done), "records": records, "seconds": repr(self.seconds)}

    @classmethod
    def from_parts(cls, tensors: dict[str, torch.Tensor], meta: dict[str, str]) -> Self:
        """The state from what `tensors` and `meta` gave; `ValueError` where it is damaged."""
        try:
            records = [TrialRecord(*row) for row in json.loads(meta["records"])]
            counts = dict(tensors)
            cosines = counts.pop(COSINES, None)
            histograms = {name: ValueHistogram(of) for name, of in counts.items()}
            return cls(int(meta["done"]), records, histograms, cosines, float(meta["seconds"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not the state of trials: {error}") from None


def run_trials(
    spec: TrialsSpec,
    start: RunState,
    data: Data,
    *,
    begun: TrialState | None = None,
    tick: Tick = ignore,
    save: Callable[[TrialState], None] = ignore,
    save_every_s: float = SAVE_EVERY_S,
    keep: Keep | None = None,
) -> TrialState:
    """Run the trials of the spec from the weights of `start`, the end of `spec.start`.

    Goes on from `begun` where that is given. `tick` may raise, in which case the state of the
    passes done is handed to `save`; `save` is called every `save_every_s` besides. `keep` is
    given every raw gradient of the last layer, in no particular order. Raises `UserError` where
    the starting run diverged or its model is not a perceptron.
    """
    if start.status != "finished":
        raise UserError(f"no trials from a run that has {start.status}: {spec.start.key[:12]}")
    model = initial_model(spec.start, data)
    model.load_state_dict(start.group("model"))
    layers = mlp.linear_layers(model)
    if layers is None:
        raise UserError("gradient trials need a perceptron of Linear and ReLU layers")
    names = [name for name, p in model.named_parameters() if p.ndim >= 2]
    state = begun or TrialState()
    began = saved = time.monotonic()
    before = state.seconds
    measure = Measure(spec, layers, names, data, keep)
    device = layers[0].weight.device
    chunks = _chunks(spec, state.done, measure.bytes_each, _room(device))
    # A chunk has as many trials as a GPU has room for: one chunk at a time there.
    at_once = torch.get_num_threads() if device.type == "cpu" else 1
    steps = spec.step_count(len(data.train_x)) // spec.trials
    try:
        for measured in _in_order(measure, chunks, at_once):
            state.add(measured)
            state.seconds = before + time.monotonic() - began
            tick(measured.passes * steps)
            if time.monotonic() - saved >= save_every_s and state.done < spec.trials:
                save(state)
                saved = time.monotonic()
    except BaseException:
        save(state)
        raise
    return state


def last_weight(start: TrainSpec, data: Data) -> tuple[str, torch.Tensor]:
    """Name and initial value of the weight matrix that trials from this run measure."""
    named = initial_model(start, data).named_parameters()
    return [(name, p.detach()) for name, p in named if p.ndim >= 2][-1]


def _room(device: torch.device) -> float:
    """Bytes for trials side by side: part of a GPU's memory, whatever is free of it."""
    if device.type == "cpu":
        return 0.0  # one a thread
    return STACK * torch.cuda.get_device_properties(device).total_memory


def _chunks(
    spec: TrialsSpec, done: int, bytes_each: Callable[[bool], int], room: float
) -> list[Passes]:
    """The passes still to be done, in as few chunks as there is room for, all about as large.

    `bytes_each`: what a pass takes, of a detailed draw or not; one is a chunk at the least.
    """
    passes = list(product(range(spec.draws), range(spec.orders)))[done:]
    sizes = [bytes_each(draw < spec.detailed) if room else 1 for draw, _ in passes]
    total = sum(sizes)
    count = min(len(passes), ceil(total / room)) if room else len(passes)
    chunks: list[Passes] = [[] for _ in range(count)]
    for one, before in zip(passes, accumulate(sizes, initial=0), strict=False):
        chunks[before * count // total].append(one)
    return chunks


def _in_order(measure: Measure, chunks: Sequence[Passes], at_once: int) -> Iterator[Measured]:
    """Measure every chunk, so many at a time, each by a thread, and yield in their order."""
    threads = torch.get_num_threads()
    # Each worker's arithmetic is unthreaded; so is this thread's meanwhile, which only waits.
    torch.set_num_threads(1)
    pool = ThreadPoolExecutor(at_once, initializer=torch.set_num_threads, initargs=(1,))
    under_way: deque[Future[Measured]] = deque()
    try:
        for chunk in chunks:
            under_way.append(pool.submit(measure, chunk))
            if len(under_way) > at_once:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
