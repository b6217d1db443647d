"""Everything that is measured at one batch size: the search, then the best rate's repetitions."""

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from batchlab.backends.base import Report
from batchlab.engine.draws import derived
from batchlab.engine.settings import Settings
from batchlab.engine.target_run import judged_by, run_to_target
from batchlab.spec import UserError
from batchlab.sweep.journal import Journal, Row
from batchlab.sweep.protocol import PILOT_PART, PILOT_SEEDS, Asked, Place, Protocol
from batchlab.sweep.rows import as_row, as_trial
from batchlab.sweep.search import Trial, best, predicted, search
from batchlab.workloads.failures import training
from batchlab.workloads.optimizers import adaptive
from batchlab.workloads.prepared import Prepared
from batchlab.workloads.target import load_target

SEARCHED = 3  # seeds that a rate of the search is run with, until one does not arrive


class Job(NamedTuple):
    """One batch size of a sweep, for whatever process does it."""

    place: Place
    protocol: Protocol
    size: int
    seeds: int
    out: Path


def do(job: Job, report: Report) -> None:
    """Measure what the job's file does not have; `report(1)` after every trial and repetition."""
    kept = journal(job.out, job.size)
    with training(f"batch size {job.size}", "leave it out of --batch-sizes"):
        measure(load(job.place), job.protocol, job.size, job.seeds, kept, report)


@lru_cache(maxsize=1)
def load(place: Place) -> Prepared:
    """The workload, once a process."""
    return load_target(place.target, seed=place.seed, data_dir=place.data_dir, device=place.device)


def journal(out: Path, size: int) -> Journal:
    """The file of a batch size."""
    return Journal(out / f"batch-{size:07d}.jsonl")


def measure(
    workload: Prepared, protocol: Protocol, size: int, seeds: int, kept: Journal, report: Report
) -> None:
    """Search for the best rate, then train `seeds` fresh initialisations with it.

    A rate of the search is as good as the slowest of three seeds, the same ones for all: with
    one, a rate much too large wins by passing the target once by chance. The repetitions have
    other seeds, the same ones at every batch size, and go on to the budget's end. What `kept` has
    is not run again: the search goes through the same trials, as far as they are known.
    """
    known = iter(list(kept.rows))

    def run(kind: str, rate: float, seed: int, steps: int) -> Row:
        row = next(known, None)
        asked = {"kind": kind, "batch_size": size, "rate": rate, "seed": seed, "most": steps}
        if row is None:
            made = run_to_target(
                workload,
                Settings(size, learning_rate=rate),
                protocol.target,
                steps=steps,
                seed=derived(protocol.seed, kind, seed),
                report=report,
            )
            row = asked | as_row(made)
            kept.add(row)
        elif {name: row.get(name) for name in asked} != asked:
            raise UserError(f"{kept.path}: of another sweep; choose another --out, or delete it")
        return row

    def trial(rate: float, most: int | None) -> Trial:
        steps = protocol.steps(size)
        rows = []
        for seed in range(SEARCHED):
            rows.append(run("search", rate, seed, steps if most is None else min(most, steps)))
            if rows[-1]["outcome"] != "reached":
                break
        report(1)
        return as_trial(rows, protocol.target, protocol.better)

    start = predicted(
        workload.learning_rate, workload.batch_size, size, adaptive(workload.given.optimizer)
    )
    # Every size has its own rates, so that none profits from where another's happen to lie.
    trials = search(start, protocol.trials, derived(protocol.seed, "sweep", size), trial)
    for seed in range(seeds):
        run("repeat", best(trials).rate, seed, protocol.steps(size))
        report(1)


def pilot(workload: Prepared, asked: Asked, kept: Journal, report: Report) -> float:
    """The target: the median over seeds of the best value that the present setting sees in a
    quarter of the budget."""
    size, rate = workload.batch_size, workload.learning_rate
    steps, better = max(1, asked.budget // size // PILOT_PART), judged_by(workload)[1]
    made_by = {"kind": "pilot", "batch_size": size, "rate": rate, "of": asked.seed, "most": steps}
    if any({name: row.get(name) for name in made_by} != made_by for row in kept.rows):
        raise UserError(f"{kept.path}: of another sweep; choose another --out, or delete it")
    for seed in range(len(kept.rows), PILOT_SEEDS):
        made = run_to_target(
            workload,
            Settings(size),
            None,
            steps=steps,
            seed=derived(asked.seed, "pilot", seed),
            report=report,
        )
        kept.add(made_by | {"seed": seed} | as_row(made) | {"best": made.best(better)})
    values = [row["best"] for row in kept.rows if row["outcome"] == "unreached"]
    if len(values) < PILOT_SEEDS:
        raise UserError(
            f"--target: none given, and the present setting (batch size {size}, rate {rate:g}) "
            f"diverges; give one"
        )
    return float(sorted(values)[PILOT_SEEDS // 2])
