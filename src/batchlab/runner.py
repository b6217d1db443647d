"""From specs to stored records: skips what is stored, maps the rest, saves each as it ends."""

import json
import platform
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

import torch

from batchlab import __version__
from batchlab.backends.base import Backend, Report
from batchlab.engine.data import load, train_samples
from batchlab.engine.state import RunState
from batchlab.engine.train import SAVE_EVERY_S, train
from batchlab.engine.trials import TrialState, last_weight, run_trials
from batchlab.record import BinRecord, Record, TrialRecord
from batchlab.spec import Spec, TrainSpec, TrialsSpec, UserError
from batchlab.store.checkpoints import Checkpoints
from batchlab.store.database import Run, Store
from batchlab.store.tensors import TensorFiles


@dataclass(frozen=True, slots=True)
class Site:
    """Where a job finds its data and leaves its checkpoints: the same for all jobs of a map."""

    store: Path | None  # None: nothing is kept
    data_dir: Path | None
    device: str
    save_every_s: float = SAVE_EVERY_S
    tensors: Path | None = None  # where trials leave their raw gradients, if anywhere

    def checkpoints(self) -> Checkpoints | None:
        """Ends of runs that others start from."""
        return None if self.store is None else Checkpoints(self.store / "checkpoints")

    def partial(self) -> Checkpoints | None:
        """Runs under way."""
        return None if self.store is None else Checkpoints(self.store / "partial")


@dataclass(frozen=True, slots=True)
class Job:
    """A run to be done. `keep` asks for its end as a checkpoint."""

    spec: Spec
    site: Site
    keep: bool = False


@dataclass(slots=True)
class Outcome:
    """A run that has ended, and all that was measured on it."""

    run: Run
    records: list[Record] = field(default_factory=list)
    trials: list[TrialRecord] = field(default_factory=list)
    bins: list[BinRecord] = field(default_factory=list)


class Progress(Protocol):
    """Hears how far the work has come."""

    def plan(self, weights: Sequence[float], labels: Sequence[str]) -> None:
        """So many jobs are about to run, each with its expected share of the time."""

    def advance(self, job: int, share: float) -> None:
        """So much more of a job's own work is done, as a part of 1."""

    def finish(self, job: int, status: str) -> None:
        """A job has ended."""


def run_all(
    specs: Iterable[Spec],
    store: Store,
    backend: Backend,
    site: Site,
    *,
    progress: Progress,
    stopping: Callable[[], bool] = lambda: False,
) -> int:
    """Bring every spec into the store; how many runs that took.

    What is stored is not run again. Trials whose starting run diverged are left out. Raises
    `UserError` before anything runs where a spec does not fit its workload, and `Interrupted`
    where `stopping()` turned true: what is under way is then kept for the next time.
    """
    wanted: list[Spec] = list(dict.fromkeys(specs))
    for spec in wanted:
        spec.check(_samples(spec))
    trials = [s for s in wanted if isinstance(s, TrialsSpec)]
    runs = [s for s in wanted if isinstance(s, TrainSpec)]
    stored = store.keys()
    missing = [s for s in trials if s.key not in stored]
    kept = site.checkpoints()
    starts = [s.start for s in missing if kept is None or not kept.path(s.start.key).exists()]
    todo = [s for s in dict.fromkeys([*runs, *starts]) if s.key not in stored or s in starts]
    needed: list[Spec] = [*todo, *missing]
    for name in {_start(s).workload for s in needed}:
        load(name, site.data_dir, "cpu", "float32")  # can't be had? then told of now, in one line
    done = 0
    for stage in (todo, missing):
        ended = {run.key: run.status for run in store.runs([_start(s).key for s in stage])}
        ready = [s for s in stage if ended.get(_start(s).key) != "diverged" or s is _start(s)]
        jobs = [Job(s, site, keep=s in starts) for s in sorted(ready, key=_cost, reverse=True)]
        progress.plan([_cost(j.spec) for j in jobs], [_label(j.spec) for j in jobs])
        heard = _Heard(progress, [j.spec.step_count(_samples(j.spec)) for j in jobs])
        for index, outcome in backend.map(execute, jobs, progress=heard, stopping=stopping):
            if outcome.run.key not in stored:
                store.add(outcome.run, outcome.records, outcome.trials, outcome.bins)
                stored.add(outcome.run.key)
            partial = site.partial()
            if partial is not None:
                partial.drop(outcome.run.key)
            progress.finish(index, outcome.run.status)
            done += 1
    return done


@dataclass(frozen=True, slots=True)
class _Heard:
    """Passes a backend's steps on as parts of each job."""

    progress: Progress
    totals: Sequence[int]

    def __call__(self, job: int, steps: int) -> None:
        self.progress.advance(job, steps / self.totals[job])


def execute(job: Job, report: Report) -> Outcome:
    """Do one job, from its last checkpoint where there is one."""
    if isinstance(job.spec, TrainSpec):
        return _train(job, job.spec, report)
    return _trials(job, job.spec, report)


def _train(job: Job, spec: TrainSpec, report: Report) -> Outcome:
    site = job.site
    data = load(spec.workload, site.data_dir, site.device, spec.dtype)
    under_way = _UnderWay(site.partial(), spec.key)
    begun = under_way.load(RunState.from_parts)
    if begun is not None:
        report(begun.position.step)
    end = train(
        spec,
        data,
        start=begun,
        tick=report,
        save=under_way.save,
        save_every_s=site.save_every_s,
    )
    kept = site.checkpoints()
    if job.keep and kept is not None:
        kept.save(spec.key, end.tensors, end.meta())
    run = _run(job, end.status, end.position.step, end.seconds)
    return Outcome(run, records=end.records)


def _trials(job: Job, spec: TrialsSpec, report: Report) -> Outcome:
    site = job.site
    start = _UnderWay(site.checkpoints(), spec.start.key).load(RunState.from_parts)
    if start is None:
        raise FileNotFoundError(f"no checkpoint of {spec.start.key}")
    data = load(spec.start.workload, site.data_dir, site.device, spec.start.dtype)
    under_way = _UnderWay(site.partial(), spec.key)
    begun = under_way.load(TrialState.from_parts)
    steps = spec.step_count(len(data.train_x))
    with ExitStack() as open_files:
        keep = None
        if site.tensors is not None:
            name, weight = last_weight(spec.start, data)
            keep = TensorFiles(site.tensors, spec, name, (weight.shape[0], weight.shape[1]))
            open_files.enter_context(keep)
            if not keep.resumed:
                begun = None  # the gradients of the passes done are not in these files
        if begun is not None:
            report(steps // spec.trials * begun.done)
        end = run_trials(
            spec,
            start,
            data,
            begun=begun,
            tick=report,
            save=under_way.save,
            save_every_s=site.save_every_s,
            keep=keep,
        )
    run = _run(job, "finished", steps, end.seconds)
    return Outcome(run, trials=end.records, bins=end.bins())


class _State(Protocol):
    """What a checkpoint is made of."""

    @property
    def tensors(self) -> dict[str, torch.Tensor]: ...

    def meta(self) -> dict[str, str]: ...


State = TypeVar("State")


class _UnderWay:
    """The checkpoint of one run, where there is a store to keep it in."""

    def __init__(self, checkpoints: Checkpoints | None, key: str) -> None:
        self._checkpoints, self._key = checkpoints, key

    def save(self, state: _State) -> None:
        if self._checkpoints is not None:
            self._checkpoints.save(self._key, state.tensors, state.meta())

    def load(
        self, build: Callable[[dict[str, torch.Tensor], dict[str, str]], State]
    ) -> State | None:
        """What was saved, if anything was; `UserError` where it is damaged."""
        found = None if self._checkpoints is None else self._checkpoints.load(self._key)
        if self._checkpoints is None or found is None:
            return None
        try:
            return build(*found)
        except ValueError as error:
            raise UserError(
                f"checkpoint {self._checkpoints.path(self._key)}: damaged ({error}); delete it "
                "and the run starts over"
            ) from None


def _run(job: Job, status: str, steps: int, seconds: float) -> Run:
    environment = {
        "batchlab": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "device": job.site.device,
        "threads": torch.get_num_threads(),
    }
    spec = job.spec
    text = json.dumps(environment, sort_keys=True)
    return Run(spec.key, spec.kind, spec.canonical(), status, steps, seconds, text)


def _start(spec: Spec) -> TrainSpec:
    return spec.start if isinstance(spec, TrialsSpec) else spec


def _samples(spec: Spec) -> int:
    return train_samples(_start(spec).workload)


def _cost(spec: Spec) -> float:
    """Expected time in units of its own: a step costs its samples and a constant besides."""
    if isinstance(spec, TrialsSpec):
        passes = [spec.samples + STEP_OVERHEAD * spec.samples / b for b in spec.batch_sizes]
        return spec.trials * sum(passes)
    samples = _samples(spec)
    return sum(p.step_count(samples) * (p.batch_size + STEP_OVERHEAD) for p in spec.schedule)


STEP_OVERHEAD = 64  # a step of batch size 1 costs about as much as so many samples more


def _label(spec: Spec) -> str:
    schedule = ", then ".join(phase.label() for phase in _start(spec).schedule)
    kind = "trials after " if isinstance(spec, TrialsSpec) else ""
    return f"{kind}{schedule}, seed {_start(spec).seed}"
