"""Pieces of the plan as a job: done from their last checkpoints, in whatever process it lands."""

import json
import platform
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Protocol, Self, TypeVar

import torch

from batchlab import __version__
from batchlab.backends.base import Report
from batchlab.engine.branch import branch, measured, select
from batchlab.engine.data import load
from batchlab.engine.state import RunState
from batchlab.engine.train import SAVE_EVERY_S, Save, train_together
from batchlab.engine.trials import TrialState, last_weight, run_trials
from batchlab.plan import Piece, Points, Stretch, Trials, points, trajectory
from batchlab.record import BinRecord, Record, TrialRecord
from batchlab.spec import Spec, TrainSpec
from batchlab.store.address import files_at
from batchlab.store.checkpoints import Checkpoints
from batchlab.store.columns import Columns
from batchlab.store.database import Run
from batchlab.store.files import within
from batchlab.store.tensors import TensorFiles
from batchlab.workloads.base import Data

LEFT_OUT = "left out"  # trials from a run that diverged
SPEC = "spec"  # the name of the trajectory's JSON in a checkpoint
TENSORS = "tensors"  # ...of which files have the gradients of the passes done


@dataclass(frozen=True, slots=True)
class Site:
    """Where a job finds its data and leaves its checkpoints: the same for all jobs of a map."""

    store: Path | None  # None: nothing is kept
    data_dir: Path | None
    device: str
    save_every_s: float = SAVE_EVERY_S
    tensors: Path | None = None  # where trials leave their raw gradients, if anywhere
    address: str | None = None  # where checkpoints are, if not in the store

    def absolute(self) -> "Site":
        """The same for a worker with another current directory."""
        return replace(
            self,
            store=self.store and self.store.absolute(),
            data_dir=self.data_dir and self.data_dir.absolute(),
            tensors=self.tensors and self.tensors.absolute(),
        )

    def checkpoints(self) -> Checkpoints:
        """Ends of stretches that others go on from, by trajectory."""
        return self._checkpoints("checkpoints")

    def partial(self) -> Checkpoints:
        """What is under way: stretches by trajectory, trials by their spec."""
        return self._checkpoints("partial")

    def _checkpoints(self, name: str) -> Checkpoints:
        if self.address is not None:
            return Checkpoints(files_at(self.address, name))
        if self.store is None:
            raise ValueError("no checkpoints without a store")
        return Checkpoints(within(self.store, name))


@dataclass(frozen=True, slots=True)
class Job:
    """Trials, or stretches of training side by side, and where they are done."""

    pieces: tuple[Piece, ...]
    site: Site


@dataclass(slots=True)
class Ended:
    """A run that has ended, and all that was measured on it."""

    run: Run
    records: Columns
    trials: Columns
    bins: Columns

    @classmethod
    def of(
        cls,
        run: Run,
        records: Iterable[Record] = (),
        trials: Iterable[TrialRecord] = (),
        bins: Iterable[BinRecord] = (),
    ) -> Self:
        """From rows: as columns they go to another process in an eighth of the time."""
        return cls(
            run,
            Columns.of(Record, records),
            Columns.of(TrialRecord, trials),
            Columns.of(BinRecord, bins),
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a piece came out, and the runs that ended with it."""

    status: str
    ended: tuple[Ended, ...]


def under_way_key(piece: Piece) -> str:
    """What the checkpoint of a piece under way is called."""
    return (trajectory(piece.spec) if isinstance(piece, Stretch) else piece.spec).key


def kept_ends(site: Site) -> dict[TrainSpec, Points]:
    """The trajectories whose ends are kept, and what was measured on their way.

    A damaged file is no checkpoint, nor one under another's name: its stretch is trained again and
    takes its place. One that diverged serves only the runs that were planned with it.
    """
    kept = {}
    for key, meta in site.checkpoints().texts():
        try:
            end = RunState.from_parts({}, meta)
            path = TrainSpec.model_validate_json(meta[SPEC])
        except (ValueError, KeyError):
            continue
        if end.status == "finished" and path.key == key:
            kept[path] = Points(*measured(end.records))
    return kept


def execute(job: Job, report: Report) -> list[Outcome]:
    """Do each piece of a job, from its last checkpoint where there is one."""
    stretches = [piece for piece in job.pieces if isinstance(piece, Stretch)]
    trials = [piece for piece in job.pieces if isinstance(piece, Trials)]
    told = _stretches(job.site, stretches, report) if stretches else []
    return told + [_trials(job.site, piece, report) for piece in trials]


def _stretches(site: Site, stretches: Sequence[Stretch], report: Report) -> list[Outcome]:
    """Those that stand at one point go on together; after an interruption not all may."""
    first = stretches[0].spec
    data = load(first.workload, site.data_dir, site.device, first.dtype)
    ends: list[RunState | None] = []
    for stretch in stretches:
        begun = _begun(site, stretch, data)
        ends.append(begun)
        if begun is not None and begun.position.step > stretch.first:
            report(begun.position.step - stretch.first)
    parties: dict[tuple[int, ...] | None, list[int]] = {}
    for index, end in enumerate(ends):
        if end is None or end.status == "running":
            parties.setdefault(None if end is None else astuple(end.position), []).append(index)
    for party in parties.values():
        starts = [end for end in (ends[index] for index in party) if end is not None]
        saves = [_under_way(site, stretches[index]).save for index in party]

        def tick(steps: int, members: int = len(party)) -> None:
            report(steps * members)

        def save(states: list[RunState], saves: Sequence[Save] = saves) -> None:
            for keep, state in zip(saves, states, strict=True):
                keep(state)

        trained = train_together(
            [stretches[index].spec for index in party],
            data,
            starts=starts or None,
            tick=tick,
            save=save,
            save_every_s=site.save_every_s,
        )
        for index, end in zip(party, trained, strict=True):
            ends[index] = end
    return [
        _ended(site, stretch, end, len(data.train_x))
        for stretch, end in zip(stretches, ends, strict=True)
        if end is not None
    ]


def _ended(site: Site, stretch: Stretch, end: RunState, samples: int) -> Outcome:
    """Keep the end where others go on from it, and tell the runs that it is the end of."""
    if stretch.keep:
        path = trajectory(stretch.spec)
        site.checkpoints().save(path.key, end.tensors, end.meta() | {SPEC: path.model_dump_json()})
    ended = []
    for run in stretch.runs:
        told = _run(site, run, end.status, end.position.step, end.seconds)
        ended.append(Ended.of(told, select(end.records, *points(run, samples))))
    return Outcome(end.status, tuple(ended))


def _under_way(site: Site, piece: Piece) -> "_Checkpoint":
    return _Checkpoint(site.partial(), under_way_key(piece))


def _begun(site: Site, stretch: Stretch, data: Data) -> RunState | None:
    """Where the stretch goes on from; `None`: from its initial point."""
    begun = _under_way(site, stretch).load(RunState.from_parts)
    if begun is not None and _serves(begun, stretch):
        return begun
    if stretch.begin is None:
        return None
    return branch(_end(site, stretch.begin), stretch.spec, len(data.train_x))


def _serves(state: RunState, stretch: Stretch) -> bool:
    """Whether a state under way is further than the start and was measured as is needed now."""
    here, had = state.position.step, Points(*measured(state.records))
    return here >= stretch.first and had.cover(stretch.needs, here)


def _end(site: Site, begin: TrainSpec) -> RunState:
    end = _Checkpoint(site.checkpoints(), begin.key).load(RunState.from_parts)
    if end is None:
        raise FileNotFoundError(f"no checkpoint of {begin.key}")
    return end


def _trials(site: Site, piece: Trials, report: Report) -> Outcome:
    spec = piece.spec
    start = _end(site, trajectory(spec.start))
    if start.status == "diverged":
        return Outcome(LEFT_OUT, ())
    data = load(spec.start.workload, site.data_dir, site.device, spec.start.dtype)
    under_way = _under_way(site, piece)
    steps = spec.step_count(len(data.train_x))
    keep = None
    if site.tensors is not None:
        name, weight = last_weight(spec.start, data)
        keep = TensorFiles(site.tensors, spec, name, (weight.shape[0], weight.shape[1]))

    def build(tensors: dict[str, torch.Tensor], meta: dict[str, str]) -> TrialState | None:
        if keep is not None and meta.get(TENSORS) != keep.mark:
            return None  # the gradients of the passes done are not in these files
        return TrialState.from_parts(tensors, meta)

    def save(state: TrialState) -> None:
        if keep is None:
            under_way.save(state)
        else:
            keep.sync()  # first: no pass may be done of which the gradient is lost
            under_way.save(state, **{TENSORS: keep.mark})

    with keep or nullcontext():
        begun = under_way.load(build)
        if begun is not None:
            report(steps // spec.trials * begun.done)
        end = run_trials(
            spec,
            start,
            data,
            begun=begun,
            tick=report,
            save=save,
            save_every_s=site.save_every_s,
            keep=keep,
        )
    run = _run(site, spec, "finished", steps, end.seconds)
    return Outcome("finished", (Ended.of(run, (), end.records, end.bins()),))


class _State(Protocol):
    """What a checkpoint is made of."""

    @property
    def tensors(self) -> dict[str, torch.Tensor]: ...

    def meta(self) -> dict[str, str]: ...


State = TypeVar("State")


class _Checkpoint:
    """One state in a directory of them."""

    def __init__(self, checkpoints: Checkpoints, key: str) -> None:
        self._checkpoints, self._key = checkpoints, key

    def save(self, state: _State, **more: str) -> None:
        self._checkpoints.save(self._key, state.tensors, state.meta() | more)

    def load(
        self, build: Callable[[dict[str, torch.Tensor], dict[str, str]], State]
    ) -> State | None:
        """What was saved, if anything was; `UserError` where it is damaged."""
        found = self._checkpoints.load(self._key)
        if found is None:
            return None
        try:
            return build(*found)
        except ValueError as error:
            raise self._checkpoints.damaged(self._key, error) from None


def _run(site: Site, spec: Spec, status: str, steps: int, seconds: float) -> Run:
    environment = {
        "batchlab": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "device": site.device,
        "threads": torch.get_num_threads(),
    }
    text = json.dumps(environment, sort_keys=True)
    return Run(spec.key, spec.kind, spec.canonical(), status, steps, seconds, text)
