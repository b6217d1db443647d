"""From specs to stored records: plans what is missing, maps it, saves each run as it ends."""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from batchlab.backends.base import Backend
from batchlab.calibrate import calibrate
from batchlab.engine.data import load, train_samples
from batchlab.engine.train import ignore
from batchlab.jobs import Job, Site, execute, kept_ends, under_way_key
from batchlab.plan import Plan, chains, estimate, make_plan
from batchlab.spec import Spec, TrainSpec, TrialsSpec
from batchlab.store.database import Store


class Progress(Protocol):
    """Hears how far the work has come."""

    def plan(self, weights: Sequence[float], labels: Sequence[str], said: str) -> None:
        """So many jobs are about to run, each with its expected seconds; `said` is the plan."""

    def say(self, line: str) -> None:
        """Something that a user who waits should know."""

    def advance(self, job: int, share: float) -> None:
        """So much more of a job's own work is done, as a part of 1."""

    def finish(self, job: int, status: str) -> None:
        """A job has ended."""


@dataclass(frozen=True, slots=True)
class Costed:
    """A plan and what it is expected to take."""

    plan: Plan
    costs: tuple[float, ...]  # seconds of a worker, a piece
    seconds: float  # until all is done


def prepare(
    specs: Iterable[Spec],
    store: Store,
    backend: Backend,
    site: Site,
    say: Callable[[str], None] = ignore,
) -> Costed:
    """What has to be done to bring every spec into the store; nothing is trained or written.

    Raises `UserError` where a spec does not fit its workload or the data can't be had.
    """
    wanted = list(dict.fromkeys(specs))
    for spec in wanted:
        spec.check(train_samples(_start(spec).workload))
    stored = {run.key: run.status for run in store.runs()}
    kept = {} if site.store is None else kept_ends(site)
    plan = make_plan(wanted, stored, kept, train_samples)
    for name in {_start(piece.spec).workload for piece in plan.pieces}:
        load(name, site.data_dir, "cpu", "float32")  # can't be had? then told of now, in one line
    costs = calibrate(plan, site.data_dir, site.device, backend.threads, say)
    after = [piece.after for piece in plan.pieces]
    return Costed(plan, tuple(costs), estimate(costs, after, backend.workers))


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
    starting run diverged are left out. Raises `UserError` before anything runs where a spec does
    not fit its workload, and `Interrupted` where `stopping()` turned true: what is under way is
    then kept for the next time.
    """
    with _somewhere(site) as site:
        costed = prepare(specs, store, backend, site, progress.say)
        pieces, costs = costed.plan.pieces, costed.costs
        # What the most work waits for goes first.
        tails = chains(costs, [piece.after for piece in pieces])
        order = sorted(range(len(pieces)), key=tails.__getitem__, reverse=True)
        place = {index: at for at, index in enumerate(order)}
        ordered = [pieces[index] for index in order]
        progress.plan(
            [costs[index] for index in order],
            [piece.label for piece in ordered],
            costed.plan.said(costed.seconds),
        )
        heard = _Heard(progress, [max(1, piece.steps) for piece in ordered])
        jobs = [Job(piece, site) for piece in ordered]
        after = [None if piece.after is None else place[piece.after] for piece in ordered]
        known, done = store.keys(), 0
        for index, outcome in backend.map(
            execute, jobs, progress=heard, stopping=stopping, after=after
        ):
            for ended in outcome.ended:
                if ended.run.key not in known:
                    store.add(ended.run, ended.records, ended.trials, ended.bins)
                    known.add(ended.run.key)
                done += 1
            site.partial().drop(under_way_key(ordered[index]))
            progress.finish(index, outcome.status)
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
