"""From specs to stored records: plans what is missing, maps it, saves each run as it ends."""

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from batchlab.backends.base import Backend, Interrupted
from batchlab.calibrate import LEAST_S, calibrate
from batchlab.engine.data import load, train_samples
from batchlab.engine.replicas import can_stack
from batchlab.engine.train import ignore
from batchlab.gate import Gate
from batchlab.jobs import Job, Site, execute, kept_ends, under_way_key
from batchlab.lockstep import MOST, Group, chains, estimate, groups, in_turns
from batchlab.plan import Plan, Stretch, Trials, make_plan
from batchlab.spec import Spec, TrainSpec, TrialsSpec, check_matmul
from batchlab.store.claims import Claims
from batchlab.store.database import Store

WAIT_S = 0.2  # between looks at what another process is at


class Progress(Protocol):
    """Hears how far the work has come."""

    def plan(self, weights: Sequence[float], said: str) -> None:
        """So many jobs are about to run, each with its expected seconds; `said` is the plan."""

    def say(self, line: str) -> None:
        """Something that a user who waits should know."""

    def advance(self, job: int, share: float) -> None:
        """So much more of a job's own work is done, as a part of 1."""

    def finish(self, job: int) -> None:
        """A job has ended."""


@dataclass(frozen=True, slots=True)
class Costed:
    """A plan and what it is expected to take."""

    plan: Plan
    groups: tuple[Group, ...]  # what is done as one job
    costs: tuple[float, ...]  # seconds of a worker, a piece
    workers: int

    def jobs(self) -> tuple[list[float], list[int | None]]:
        """For each group its cost, and the group it waits for."""
        place = {index: at for at, group in enumerate(self.groups) for index in group}
        after = [self.plan.pieces[group[0]].after for group in self.groups]
        return (
            [sum(self.costs[index] for index in group) for group in self.groups],
            [None if other is None else place[other] for other in after],
        )

    @property
    def seconds(self) -> float:
        """Until all is done."""
        return estimate(*self.jobs(), self.workers)


def prepare(
    specs: Iterable[Spec],
    store: Store,
    backend: Backend,
    site: Site,
    say: Callable[[str], None] = ignore,
    pace: float | None = None,
    *,
    start: bool = False,
) -> Costed:
    """What has to be done to bring every spec into the store; nothing is trained or written.

    Costs are a calibration's, unless a `pace` in seconds a step is known already. With `start` a
    GPU's workers start meanwhile. Raises `UserError` where a spec does not fit its workload or the
    data can't be had.
    """
    wanted = list(dict.fromkeys(specs))
    for spec in wanted:
        spec.check(train_samples(_start(spec).workload))
        check_matmul(_start(spec).matmul, site.device)
    stored = store.states()
    missing = any(spec.key not in stored for spec in wanted)
    # Where nothing is missing no checkpoint is looked at: there may be thousands.
    kept = kept_ends(site) if missing and site.store is not None else {}
    plan = make_plan(wanted, stored, kept, train_samples)
    for name in {_start(piece.spec).workload for piece in plan.pieces}:
        load(name, site.data_dir, "cpu", "float32")  # can't be had? then told of now, in one line

    if start and plan.pieces and site.device == "cuda":  # on a CPU they would be timed as well
        backend.start(execute)

    def stacks(stretch: Stretch) -> bool:
        return _stacks(stretch, site)

    together = groups(plan.pieces, stacks, backend.workers, MOST[site.device])
    if pace is None:
        costs = calibrate(plan, together, site.data_dir, site.device, backend.threads, say)
    else:
        costs = [max(LEAST_S, pace * piece.steps) for piece in plan.pieces]
    return Costed(plan, together, tuple(costs), backend.workers)


def _stacks(stretch: Stretch, site: Site) -> bool:
    """Whether any phase that the stretch trains in is faster beside others."""
    if site.device == "cuda":  # where all are
        return True
    spec, end = stretch.spec, 0
    data = load(spec.workload, site.data_dir, "cpu", "float32")
    widths = (data.train_x.shape[1], *spec.model.hidden, data.classes)
    for phase in spec.schedule:
        end += phase.step_count(len(data.train_x))
        if end > stretch.first and can_stack(widths, phase, spec.matmul, site.device):
            return True
    return False


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

    What is stored is not run again, what runs have in common is trained once, and trials whose
    starting run diverged are left out. What another process is at is waited for, and taken over
    should that process die. Raises `UserError` before anything runs where a spec does not fit its
    workload, and `Interrupted` where `stopping()` turned true: what is under way is then kept for
    the next time.
    """
    specs, done, pace = list(specs), 0, None
    with _somewhere(site.absolute()) as site, Claims(store.root) as claims:
        site.partial().sweep()
        site.checkpoints().sweep()
        while True:
            gate = Gate(store, claims, site)  # before the plan: it sees whatever changes after
            costed = prepare(specs, store, backend, site, progress.say, pace, start=True)
            done += _run_plan(costed, store, backend, site, progress, stopping, gate)
            if not gate.refused:
                return done
            if pace is None:
                steps = sum(piece.steps for piece in costed.plan.pieces)
                pace = sum(costed.costs) / max(1, steps)
            if gate.against:
                progress.say("waiting for what another process is at")
                while claims.held(gate.against):
                    if stopping():
                        raise Interrupted
                    time.sleep(WAIT_S)


def _run_plan(
    costed: Costed,
    store: Store,
    backend: Backend,
    site: Site,
    progress: Progress,
    stopping: Callable[[], bool],
    gate: Gate,
) -> int:
    """Do what the gate lets through; how many runs that took."""
    pieces = [[costed.plan.pieces[index] for index in group] for group in costed.groups]
    costs, after = costed.jobs()
    # What the most work waits for goes first.
    tails = chains(costs, after)
    order = sorted(range(len(pieces)), key=tails.__getitem__, reverse=True)
    if site.device == "cuda" and backend.workers > 1:
        order = in_turns(order, [isinstance(group[0], Trials) for group in pieces], after)
    place = {index: at for at, index in enumerate(order)}
    ordered = [pieces[index] for index in order]
    progress.plan([costs[index] for index in order], costed.plan.said(costed.seconds))
    steps = [max(1, sum(piece.steps for piece in group)) for group in ordered]
    heard = _Heard(progress, steps)
    jobs = [Job(tuple(group), site) for group in ordered]
    waits = [None if (on := after[index]) is None else place[on] for index in order]
    done = 0

    def begin(index: int) -> bool:
        return gate.opens(ordered[index])

    mapped = backend.map(execute, jobs, progress=heard, stopping=stopping, after=waits, begin=begin)
    with closing(mapped) as results:
        for index, outcomes in results:
            for piece, outcome in zip(ordered[index], outcomes, strict=True):
                for ended in outcome.ended:
                    store.add(ended.run, ended.records, ended.trials, ended.bins)
                    done += 1
                site.partial().drop(under_way_key(piece))
                if outcome.status != "finished":
                    progress.say(f"{outcome.status}: {piece.label}")
            del outcomes  # it holds all that was measured
            gate.closes(ordered[index])
            progress.finish(index)
    return done


@contextmanager
def _somewhere(site: Site) -> Iterator[Site]:
    """The site, with a place for checkpoints that is gone afterwards where it has none."""
    if site.store is not None:
        yield site
        return
    with tempfile.TemporaryDirectory() as gone:
        yield replace(site, store=Path(gone))


@dataclass(frozen=True, slots=True)
class _Heard:
    """Passes a backend's steps on as parts of each job."""

    progress: Progress
    totals: Sequence[int]

    def __call__(self, job: int, steps: int) -> None:
        self.progress.advance(job, steps / self.totals[job])


def _start(spec: Spec) -> TrainSpec:
    return spec.start if isinstance(spec, TrialsSpec) else spec
