"""What each piece of a plan will take, from timing a few steps of every kind that it has.

A calibration trains a cut run on a part of the data and throws it away: nothing of it reaches a
result. It calls the training loop itself, and so times whatever stepper that chooses.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Timer
from typing import NamedTuple

import torch

from batchlab.backends.base import limit_threads
from batchlab.engine.data import load, train_samples
from batchlab.engine.loop import compile_loop
from batchlab.engine.passes import SMALL
from batchlab.engine.state import Position, RunState
from batchlab.engine.step import COMPILED
from batchlab.engine.train import classify, ignore, initial_model, train_together
from batchlab.engine.trials import run_trials
from batchlab.lockstep import Group
from batchlab.plan import Plan, Stretch, points
from batchlab.spec import Cadence, Phase, TrainSpec, TrialsSpec
from batchlab.workloads.base import Data

BUDGET_S = 0.3  # for each kind of step
FEWEST_STEPS, MOST_STEPS = 4, 128
WHOLE_STRETCHES = 2**12  # steps: enough for several stretches of any stepper
SHARE = 0.05  # of the steps planned, where that is more than the fewest
ROWS = 2048  # of the data, or four batches
TRIAL_SAMPLES = 128  # of a trial
ABREAST = 256  # trials on a GPU: as many as it takes for each to cost what it does among more
LEAST_S = 1e-6  # a piece costs something, whatever the clock says
SLOW_S = 2.0  # loading what was compiled before takes less
COMPILING = "compiling the loop for small batches: once on this machine, up to a minute"
NEVER = 2**40  # epochs between measurements

Load = Callable[[TrainSpec], Data]


class Seconds(NamedTuple):
    """What was timed of one kind of step."""

    step: float
    weights: float  # measuring the weights alone


class Pass(NamedTuple):
    """Seconds between the ends of two trials, all threads at work."""

    plain: float
    detailed: float


class _Part(NamedTuple):
    """What a stretch has of one phase."""

    kind: TrainSpec  # a step of it, a run with nothing else
    steps: int
    full: int  # measurements
    weights: int


def calibrate(
    plan: Plan,
    groups: Sequence[Group],
    data_dir: Path | None,
    device: str,
    threads: int,
    say: Callable[[str], None] = ignore,
) -> list[float]:
    """Seconds that a worker with so many threads needs for each piece of the plan.

    `groups` are of pieces that go in lockstep: each then takes its part of the whole group's time.
    `say` hears of it where the loop of small batches has to be compiled first, which takes long.
    """

    def data(spec: TrainSpec) -> Data:
        return load(spec.workload, data_dir, device, spec.dtype)

    before = torch.get_num_threads()
    limit_threads(threads)
    try:
        if device == "cpu":
            _compile(plan, say)
        steps = _time_kinds(plan, groups, data)
        models = {_model(kind): kind for kind in steps}
        evaluations = {model: _time_evaluation(kind, data) for model, kind in models.items()}
        passes: dict[TrialsSpec, Pass] = {}
        costs = []
        for piece in plan.pieces:
            if isinstance(piece, Stretch):
                seconds = sum(
                    # A full measurement has a gradient in it, which is about a step.
                    (part.steps + part.full) * steps[part.kind].step
                    + (part.weights + part.full) * steps[part.kind].weights
                    + part.full * evaluations[_model(part.kind)]
                    for part in _parts(piece)
                )
            else:
                seconds = _trials_cost(piece.spec, data, passes)
            costs.append(max(LEAST_S, seconds))
        return costs
    finally:
        limit_threads(before)
        if device == "cuda":
            torch.cuda.empty_cache()  # the workers want the memory


def _compile(plan: Plan, say: Callable[[str], None]) -> None:
    """Compile what the plan's small batches need, so that no job has to, nor two at once."""
    wanted = set()
    for piece in plan.pieces:
        if isinstance(piece, Stretch):
            hidden, phases = len(piece.spec.model.hidden), piece.spec.schedule
            if any(p.optimizer.plain and p.batch_size <= COMPILED for p in phases):
                wanted.add((hidden, piece.spec.dtype))
        elif min(piece.spec.batch_sizes) <= SMALL:
            wanted.add((len(piece.spec.start.model.hidden), "float64"))
    slow = Timer(SLOW_S, say, (COMPILING,))
    slow.start()
    try:
        for hidden, dtype in sorted(wanted):
            compile_loop(hidden, getattr(torch, dtype))
    finally:
        slow.cancel()


def _parts(stretch: Stretch) -> list[_Part]:
    """The phases that the stretch trains in, and how often it measures in each."""
    spec, parts, before = stretch.spec, [], 0
    samples = train_samples(spec.workload)
    asked = points(spec, samples)
    if stretch.begin is None:  # the initial point is measured at the first phase's batch size
        parts.append(_Part(_kind(spec, spec.schedule[0]), 0, 1, 0))
    for phase in spec.schedule:
        end = before + phase.step_count(samples)
        begin = max(before, stretch.first)
        if end > begin:
            full, weights = (sum(begin < step <= end for step in of) for of in asked)
            parts.append(_Part(_kind(spec, phase), end - begin, full, weights))
        before = end
    return parts


def _kind(spec: TrainSpec, phase: Phase) -> TrainSpec:
    """What the time of a step depends on: all but the seed, the rate and the length."""
    step = Phase(batch_size=phase.batch_size, learning_rate=1.0, steps=1, optimizer=phase.optimizer)
    return _model(spec).model_copy(update={"schedule": (step,)})


def _model(spec: TrainSpec) -> TrainSpec:
    """What the time of an evaluation depends on."""
    return spec.model_copy(update={"schedule": (), "cadence": Cadence(), "seed": 0})


def _time_kinds(plan: Plan, groups: Sequence[Group], data: Load) -> dict[TrainSpec, Seconds]:
    """Each kind of step, timed at the first rate that the plan has for it."""
    counts: Counter[TrainSpec] = Counter()
    rates: dict[TrainSpec, float] = {}
    replicas: dict[TrainSpec, int] = {}
    for group in groups:
        for stretch in (plan.pieces[index] for index in group):
            if not isinstance(stretch, Stretch):
                continue
            for phase in stretch.spec.schedule:
                rates.setdefault(_kind(stretch.spec, phase), phase.learning_rate)
            for part in _parts(stretch):
                counts[part.kind] += part.steps
                replicas[part.kind] = max(replicas.get(part.kind, 1), len(group))
    return {
        kind: _time_steps(kind, rates[kind], n, replicas[kind], data(kind))
        for kind, n in counts.items()
    }


class _Enough(Exception):  # noqa: N818, not an error
    """The steps timed so far will do."""


def _time_steps(kind: TrainSpec, rate: float, planned: int, replicas: int, data: Data) -> Seconds:
    """Seconds a step and a measurement of the weights, of each of so many replicas.

    A stepper whose stretches may be cut is timed over 1, 2, 4, ... steps; each of these ends with
    one measurement, which their difference leaves out. One whose stretches may not is timed over
    whole ones, the first left out, which compiles; its measurements cost little beside them.
    """
    size = kind.schedule[0].batch_size
    most = max(FEWEST_STEPS, min(MOST_STEPS, int(SHARE * planned)))
    marks = [2**k for k in range(most.bit_length())]
    update = {"learning_rate": rate, "steps": marks[-1] + WHOLE_STRETCHES}
    phase = kind.schedule[0].model_copy(update=update)
    cadence = Cadence(every=NEVER, steps=tuple(marks))
    spec = kind.model_copy(update={"schedule": (phase,), "cadence": cadence})
    # A GPU's steps cost what they do in epochs as long as the run's: shuffling waits for the host.
    part = data if data.train_x.is_cuda else _part(data, size * max(4, ROWS // size))
    taken = 0
    began = time.monotonic()
    at: dict[int, float] = {}

    def tick(steps: int) -> None:
        nonlocal taken
        taken += steps
        now = at[taken] = time.monotonic()
        if len(at) > 2 and (taken >= marks[-1] or now - at[min(at)] > BUDGET_S):
            raise _Enough

    specs = [spec.model_copy(update={"seed": seed}) for seed in range(replicas)]
    with suppress(_Enough):
        train_together(specs, part, tick=tick)
    each = {taken: (when - began) / replicas for taken, when in at.items()}
    spans = [(b - a, each[b] - each[a]) for a, b in zip(each, list(each)[1:], strict=False)]
    if len(spans) < 2:  # they diverged at once
        return Seconds((time.monotonic() - began) / replicas / max(1, taken), 0.0)
    (few, short), (many, long) = spans[0], spans[-1]
    if 1 not in at or many == few:  # whole stretches, or epochs of a step or two
        return Seconds(sum(span for _, span in spans) / sum(count for count, _ in spans), 0.0)
    step = (long - short) / (many - few)
    if step <= 0:  # too short for the clock
        step = long / many
    return Seconds(step, max(0.0, short - few * step))


def _time_evaluation(kind: TrainSpec, load_data: Load) -> float:
    """Seconds for loss and accuracy on both splits, from part of one."""
    data = load_data(kind)
    model = initial_model(kind, data)
    x, y = data.train_x[:ROWS], data.train_y[:ROWS]
    classify(model, x, y, "train", kind.matmul).compute()  # the first call is never like the others
    began = time.monotonic()
    classify(model, x, y, "train", kind.matmul).compute()
    seconds = time.monotonic() - began
    return seconds * (len(data.train_x) + len(data.test_x)) / len(x)


def _trials_cost(spec: TrialsSpec, load_data: Load, passes: dict[TrialsSpec, Pass]) -> float:
    """Seconds for all trials of the spec; `passes` keeps what was timed for others like it."""
    start = _model(spec.start).model_copy(update={"schedule": spec.start.schedule[-1:]})
    data = load_data(start)
    on_gpu, threads = data.train_x.is_cuda, torch.get_num_threads()
    detailed = 0 if on_gpu else min(1, spec.detailed)  # which few more go beside the others
    update = {
        "start": start,
        "samples": min(spec.samples, max(TRIAL_SAMPLES, min(spec.batch_sizes))),
        "draws": min(spec.trials, ABREAST) if on_gpu else 2 * threads * (1 + detailed),
        "orders": 1,
        "detailed": 2 * threads * detailed,
    }
    short = spec.model_copy(update=update)
    sizes = tuple(size for size in spec.batch_sizes if size <= short.samples)
    short = short.model_copy(update={"batch_sizes": sizes})
    if short not in passes:
        part = _part(data, max(ROWS, short.samples))
        passes[short] = _time_passes(short, threads, part)
    # Large batches cost about what the largest timed does: the time is in the samples.
    scale = spec.samples / short.samples * len(spec.batch_sizes) / len(sizes)
    timed = passes[short]
    seconds = (spec.draws - spec.detailed) * timed.plain + spec.detailed * timed.detailed
    return scale * spec.orders * seconds


def _time_passes(spec: TrialsSpec, threads: int, data: Data) -> Pass:
    """Seconds a trial at all batch sizes: every thread does two, and the second is timed.

    What comes before the first is done once a spec and takes no time beside many trials.
    """
    model = initial_model(spec.start, data)
    tensors = {f"model/{name}": value for name, value in model.state_dict().items()}
    start = RunState(tensors, Position(), [], "finished")
    if data.train_x.is_cuda:  # whose kernels are compiled, once on a machine
        run_trials(spec.model_copy(update={"draws": 1}), start, data)
    at = [time.monotonic()]
    run_trials(spec, start, data, tick=lambda _: at.append(time.monotonic()))
    if len(at) <= spec.draws:  # a GPU does many side by side
        return Pass(*[(at[-1] - at[0]) / spec.draws] * 2)
    plain = (at[-1] - at[-1 - threads]) / threads
    return Pass(plain, (at[2 * threads] - at[threads]) / threads if spec.detailed else plain)


def _part(data: Data, rows: int) -> Data:
    """So many samples of each split."""
    return replace(
        data,
        train_x=data.train_x[:rows],
        train_y=data.train_y[:rows],
        test_x=data.test_x[:rows],
        test_y=data.test_y[:rows],
    )
