"""A run at the present batch size: its course, its noise scale, and when it reached the target."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf
from time import perf_counter
from typing import Any, NamedTuple

from torch import Tensor

from batchlab.advice.noise import NoiseAlong
from batchlab.analysis.intervals import Interval
from batchlab.engine.general import GeneralRun
from batchlab.engine.settings import Settings, Snapshot
from batchlab.engine.target_run import Better, judged_by, reaches
from batchlab.record import NoiseSeries
from batchlab.spec import UserError
from batchlab.workloads.prepared import Prepared
from batchlab.workloads.tree import map_tensors

PLACES = (0.0, 1 / 2)  # of the steps to the target: where branches begin
MARKS = 24  # at which the model is evaluated
WAY = 0.98  # of the present run's way down, where no target is given: its lowest loss is luck

Say = Callable[[str], object]


class Mark(NamedTuple):
    """Where the run stood: loss and metric on the validation data."""

    step: int
    samples: int
    loss: float
    metric: float | None


@dataclass(frozen=True, slots=True)
class Target:
    """What training is for: a value of the validation loss or of the metric.

    `derived`: not given, but 98% of the way that the present run's loss came down.
    """

    quantity: str
    value: float
    better: Better
    derived: bool

    def reached(self, value: float) -> bool:
        """Whether a value is as good."""
        return reaches(value, self.value, self.better)

    def __str__(self) -> str:
        came = f", {WAY:.0%} of the way the present run came" if self.derived else ""
        return f"{self.quantity} {self.value:.4g}{came}"


@dataclass(frozen=True, slots=True)
class Present:
    """What the run gave. `steps` are those to the target; `measured` those of `series` (S).

    `passed`: samples in all, those of the noise scale beside the training included. `snapshots`:
    where branches begin (`PLACES`), in the host's memory.
    """

    settings: Settings
    learning_rate: float
    marks: tuple[Mark, ...]
    target: Target
    steps: Interval
    series: dict[str, NoiseSeries]
    measured: tuple[int, ...]
    kind: str
    passed: int
    snapshots: tuple[Snapshot, ...]
    seconds: float

    @property
    def samples(self) -> int:
        """Samples it trained on."""
        return self.marks[-1].samples

    def json(self) -> dict[str, Any]:
        """A JSON object."""
        return {
            "batch_size": self.settings.batch_size,
            "learning_rate": self.learning_rate,
            "target": {
                "quantity": self.target.quantity,
                "value": self.target.value,
                "derived": self.target.derived,
            },
            "steps_to_target": self.steps,
            "samples": self.samples,
            "seconds": self.seconds,
            "noise_measured": self.kind,
            "marks": [mark._asdict() for mark in self.marks],
        }


def run_present(
    workload: Prepared,
    settings: Settings,
    steps: int,
    *,
    seed: int = 0,
    target: "float | Target | None" = None,
    branched: bool = False,
    keep: Callable[[dict[str, Any]], object] = lambda _: None,
    say: Say = lambda _: None,
) -> Present:
    """Train by the present setting for `steps`, or until the target is reached.

    `target`: of the metric where there is one, else of the loss, or another run's; none: a
    validation loss that the run comes to. `branched`: branches will go on from it. `keep` gets the
    marks so far. Raises `UserError` where the run diverges, or ends before the target.
    """
    began = perf_counter()
    rate = settings.learning_rate or workload.learning_rate
    run = GeneralRun(workload, settings, seed=seed)
    noise = NoiseAlong(run)
    goal = target if isinstance(target, Target) or target is None else _goal(workload, target)
    marks, snapshots = [_mark(run)], [_kept(run)] if branched else []
    try:
        for k in range(1, MARKS + 1):
            _stretch(run, noise, round(k * steps / MARKS) - run.place.step, steps)
            if run.status == "diverged":
                raise UserError(
                    f"the present setting (batch size {settings.batch_size}, learning rate "
                    f"{rate:g}) diverges at step {run.place.step}; must train, so take a lower rate"
                )
            marks.append(_mark(run))
            keep({"marks": [mark._asdict() for mark in marks]})
            if goal is not None and goal.reached(_value(marks[-1], goal)):
                break
            if k % 3 == 0:
                snapshots += [_kept(run)] if branched else []
                say(f"present setting: {run.place.samples:,} samples, loss {marks[-1].loss:.4g}")
    finally:
        noise.end()
    reached = goal or _derived(marks)
    steps_to = _steps_to(marks, reached, settings.batch_size)
    return Present(
        settings,
        rate,
        tuple(marks),
        reached,
        steps_to,
        noise.series(),
        tuple(noise.steps),
        noise.kind,
        run.place.samples + noise.beside,
        _nearest(snapshots, steps_to.effect),
        perf_counter() - began,
    )


def _kept(run: GeneralRun) -> Snapshot:
    """A snapshot in the host's memory: a device may have no room for several."""
    told = run.snapshot()
    model, optimizer = (map_tensors(Tensor.cpu, part) for part in (told.model, told.optimizer))
    return replace(told, model=model, optimizer=optimizer)


def _nearest(snapshots: list[Snapshot], steps: float) -> tuple[Snapshot, ...]:
    """The nearest to `PLACES` of the way, each once."""
    wanted = [share * steps for share in PLACES] if snapshots else []
    near = [min(snapshots, key=lambda s, w=w: abs(s.place.step - w)) for w in wanted]  # type: ignore[misc]
    return tuple({s.place.step: s for s in near}.values())


def _stretch(run: GeneralRun, noise: NoiseAlong, steps: int, of: int) -> None:
    """So many steps, of a run of `of` in all over which those measured are spread."""
    while steps > 0 and run.status == "running":
        noise.begin(True)
        run.advance(1)
        noise.begin(False)
        rest = min(max(1, of // noise.most), steps) - 1
        if rest:
            run.advance(rest)
        steps -= 1 + rest


def _mark(run: GeneralRun) -> Mark:
    told = run.evaluate()
    return Mark(run.place.step, run.place.samples, told.loss, told.metric)


def _goal(workload: Prepared, value: float) -> Target:
    quantity, better = judged_by(workload)
    return Target(quantity, value, better, False)


def _derived(marks: list[Mark]) -> Target:
    first, lowest = marks[0].loss, min(mark.loss for mark in marks)
    if not lowest < first:
        raise UserError(
            f"the present setting: the validation loss never fell below its first value "
            f"{first:.4g} in {marks[-1].samples} samples; raise --budget, or take another rate"
        )
    return Target("loss", first - WAY * (first - lowest), "lower", True)


def _value(mark: Mark, target: Target) -> float:
    return mark.loss if target.derived or mark.metric is None else mark.metric


def _steps_to(marks: list[Mark], target: Target, batch_size: int) -> Interval:
    """Steps to the target, between the last mark before and the first that has it."""
    values = [_value(mark, target) for mark in marks]
    k = next((i for i, value in enumerate(values) if target.reached(value)), None)
    if k is None:
        worse, of = ("lower", max) if target.better == "higher" else ("higher", min)
        best = of(values)
        raise UserError(
            f"target {target.quantity} {target.value:g}: not reached in {marks[-1].samples} "
            f"samples at batch size {batch_size}, the best was {best:.4g}; raise --budget, or give "
            f"a --target that is {worse}"
        )
    if k == 0:
        raise UserError(
            f"target {target.quantity} {target.value:g}: reached before training "
            f"({values[0]:.4g}); give a --target that is {target.better}"
        )
    before, here = marks[k - 1], marks[k]
    way = values[k - 1] - values[k]
    part = (values[k - 1] - target.value) / way if way and abs(way) < inf else 1.0
    steps = before.step + min(max(part, 0.0), 1.0) * (here.step - before.step)
    return Interval(max(steps, 1.0), max(float(before.step), 1.0), float(here.step), 1)
