"""A sweep from beginning to end: target, every batch size, result; and what a folder has of one."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from typing import Protocol as Typed

from batchlab.backends.base import Backend, Interrupted
from batchlab.documents import alone, writing
from batchlab.engine.draws import derived
from batchlab.engine.settings import Settings
from batchlab.engine.target_run import judged_by, run_to_target
from batchlab.spec import UserError
from batchlab.sweep.journal import Journal, read, write_once
from batchlab.sweep.measure import Job, do, journal, load, pilot
from batchlab.sweep.protocol import PILOT_PART, Asked, Place, Protocol, described
from batchlab.sweep.result import Result, result
from batchlab.workloads.prepared import Prepared

HEAD = "sweep.json"


class Progress(Typed):
    """What hears how far the work is."""

    def plan(self, weights: Sequence[float], said: str | None = None) -> None:
        """So many jobs of these weights."""

    def say(self, line: str) -> None:
        """A line for the user."""

    def advance(self, job: int, share: float) -> None:
        """So much more of a job is done."""

    def finish(self, job: int) -> None:
        """A job has ended."""


def sweep(
    place: Place,
    asked: Asked,
    sizes: Sequence[int],
    seeds: int,
    out: Path,
    backend: Backend,
    progress: Progress,
    stopping: Callable[[], bool],
) -> Result:
    """Measure what `out` does not have yet, and say what all of it comes to.

    The same call goes on from wherever an earlier one was stopped. Every batch size is one job, the
    numbers are the same whatever the number of workers; the seconds are not. Raises `UserError`
    where `out` is of another sweep, or another command is at work there.
    """
    workload = load(place)
    for note in workload.notes:
        progress.say(f"note: {note}")
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    with alone(out):
        head = _head(workload, asked, out, progress, stopping)
        protocol = Protocol.model_validate(head["protocol"])
        jobs = [Job(place, protocol, size, seeds, out) for size in sorted(sizes)]
        parts = protocol.trials + seeds
        each = f"{protocol.trials} trials and {seeds} seeds each"
        progress.plan([1.0] * len(jobs), f"{said(head)}: {len(jobs)} batch sizes, {each}")

        def heard(job: int, units: int) -> None:
            progress.advance(job, units / parts)

        for index, _ in backend.map(do, jobs, progress=heard, stopping=stopping):
            progress.finish(index)
        return _result(head, out, sizes)


def read_sweep(out: Path) -> Result:
    """What a folder has of a sweep, finished or not. Raises `UserError` where it has none."""
    return _result(read_head(out), out, None)


def read_head(out: Path) -> dict[str, Any]:
    """What the sweep in the folder was asked for and came to."""
    path = out / HEAD
    try:
        head = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{out}: no sweep (no {HEAD}); must be the --out of one") from None
    except ValueError:
        head = None
    if not isinstance(head, dict) or set(head) != {"workload", "asked", "protocol", "pilot"}:
        raise UserError(f"{path}: not of a sweep; must be a {HEAD} that batchlab sweep wrote")
    return head


def said(head: dict[str, Any]) -> str:
    """The target in words, and where it comes from."""
    protocol = head["protocol"]
    way = "at least" if protocol["better"] == "higher" else "at most"
    told = (
        f"{head['workload']['name']}: validation {protocol['metric']} {way} "
        f"{protocol['target']:.6g} within {protocol['budget']} samples"
    )
    if head["pilot"]:
        told += (
            f" (what batch size {head['workload']['batch_size']} at the present rate sees in 1/"
            f"{PILOT_PART} of them)"
        )
    return told


def _head(
    workload: Prepared,
    asked: Asked,
    out: Path,
    progress: Progress,
    stopping: Callable[[], bool],
) -> dict[str, Any]:
    """The folder's, or a new one, with the target looked for where none is given."""
    about = json.loads(json.dumps(described(workload)))
    if (out / HEAD).exists():
        head = read_head(out)
        for mine, kept in ((about, head["workload"]), (asked.model_dump(), head["asked"])):
            for name in mine:
                if mine[name] != kept.get(name):
                    raise UserError(
                        f"--out {out}: holds a sweep with {name} {kept.get(name)}, not "
                        f"{mine[name]}; give the same, or another --out"
                    )
        return head
    target, own = asked.target, workload.given.target

    def report(_: int) -> None:
        if stopping():
            raise Interrupted

    if target is None and own is not None:
        target = own
    looked = target is None
    if target is None:
        progress.say("no target given: looking at what the present setting reaches")
        target = pilot(workload, asked, Journal(out / "pilot.jsonl"), report)
    metric, better = judged_by(workload)
    # Before anything is kept: a target that is met from the start ends it here.
    seed = derived(asked.seed, "pilot")
    run_to_target(workload, Settings(workload.batch_size), target, steps=1, seed=seed)
    protocol = Protocol(
        target=target,
        better=better,
        metric=metric,
        budget=asked.budget,
        trials=asked.trials,
        seed=asked.seed,
    )
    head = {
        "workload": about,
        "asked": asked.model_dump(),
        "protocol": protocol.model_dump(),
        "pilot": looked,
    }
    write_once(out / HEAD, head)
    return head


def _result(head: dict[str, Any], out: Path, sizes: Sequence[int] | None) -> Result:
    """Of these sizes, or of all that the folder has."""
    if sizes is None:
        paths = sorted(out.glob("batch-*.jsonl"))
    else:
        paths = [journal(out, size).path for size in sizes]
    measured = {int(path.stem.removeprefix("batch-")): read(path) for path in paths}
    return result(said(head), Protocol.model_validate(head["protocol"]), measured)
