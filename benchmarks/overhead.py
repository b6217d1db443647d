"""What the runner, the store and the backend add: runs that sleep, against the sleep alone.

The way is the real one (plan, claims, worker processes, a durable write a run); only a run's
training is a sleep. Ideal is runs x seconds / workers. `with starting` counts from the first line
of the runner, `at work` from the first run's beginning to the last one's being stored.

    python benchmarks/overhead.py [--backend processes|ray] [--runs N] [--seconds S] [--workers W]
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from batchlab import runner
from batchlab.backends import BACKENDS
from batchlab.backends.base import Report, Wanted
from batchlab.jobs import Ended, Job, Outcome, Site
from batchlab.plan import Stretch
from batchlab.record import Record
from batchlab.spec import Cadence, Model, Phase, TrainSpec
from batchlab.store.database import Run, Store

BARS = {"processes": 1.1, "ray": 1.25}
RECORDS = 1000  # of a run


@dataclass(frozen=True)
class Nap:
    """In the place of `jobs.execute`."""

    seconds: float

    def __call__(self, job: Job, report: Report) -> list[Outcome]:
        began = time.time()
        told = []
        for piece in job.pieces:
            assert isinstance(piece, Stretch)
            time.sleep(self.seconds)
            report(piece.steps)
            records = [Record(k, k / 9, k, "norm", "weights", k / 7) for k in range(RECORDS)]
            text = json.dumps({"began": began})
            runs = [
                Run(r.key, r.kind, r.canonical(), "finished", piece.steps, self.seconds, text)
                for r in piece.runs
            ]
            told.append(Outcome("finished", tuple(Ended.of(run, records) for run in runs)))
        return told


class Quiet:
    """Remembers when the last job was stored."""

    def __init__(self) -> None:
        self.ended = 0.0

    def plan(self, weights: Sequence[float], said: str) -> None:
        print(f"{len(weights)} jobs; {said}", flush=True)

    def say(self, line: str) -> None:
        print(line, flush=True)

    def advance(self, job: int, share: float) -> None:
        """Nothing to show."""

    def finish(self, job: int) -> None:  # noqa: ARG002
        self.ended = time.time()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", choices=BARS, default="processes")
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--workers", type=int, default=2)
    asked = parser.parse_args()
    # Too large for the digits' stacks, so that each run is a job.
    phase = Phase(batch_size=500, learning_rate=0.01, epochs=1)
    specs = [
        TrainSpec(
            workload="digits",
            model=Model(hidden=(8,)),
            schedule=(phase,),
            seed=seed,
            cadence=Cadence(),
        )
        for seed in range(asked.runs)
    ]
    runner.execute = Nap(asked.seconds)  # type: ignore[attr-defined]
    with tempfile.TemporaryDirectory() as name, Store(Path(name) / "store") as store:
        progress, began = Quiet(), time.time()
        site = Site(store.root, None, "cpu")
        backend = BACKENDS[asked.backend](Wanted(asked.workers, 1))
        done = runner.run_all(specs, store, backend, site, progress=progress)
        everything = time.time() - began
        first = min(json.loads(run.environment)["began"] for run in store.runs())
        work = progress.ended - first
    ideal = asked.seconds * ceil(asked.runs / asked.workers)
    bar, started = BARS[asked.backend], first - began
    print(f"{done} runs of {asked.seconds:g} s, {asked.workers} workers: ideal {ideal:.1f} s")
    print(f"at work {work:.1f} s, {work / ideal:.3f} times the ideal (bar {bar})")
    print(f"the first began after {started:.1f} s, plan included")
    print(f"with starting {everything:.1f} s, {everything / ideal:.3f} times the ideal")


if __name__ == "__main__":
    main()
