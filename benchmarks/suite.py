"""The article's whole suite: naive scripts one after another, `reproduce`, the hardware's limit.

Nobody waits for the naive suite: its time is EXTRAPOLATED. A step of the naive script is timed at
every batch size and with every optimizer that the plan has, and multiplied by the plan's steps; a
trial is the eager pass of benchmarks/trials.py at each batch size, times the passes. Neither makes
the measurements that the suite makes (loss and accuracy every epoch, all that is measured on a
trial), so the naive side is favoured. The limit is the sum of the steps' limits
(`batchlab.speed.limit`) and of the trials' least arithmetic (benchmarks/trials.py), at the rates
measured in the same rounds, and likewise without measurements. Both use all threads for one run at
a time. `reproduce` is timed as its command: from nothing to the report, in a directory that is
gone afterwards, with as many processes as there are cores. On a machine with other work on it the
threads of a naive step wait for one another, and its extrapolation can be off by a factor of a
hundred: look at the load before, and at `--threads 1`.

    python benchmarks/suite.py [--workload digits|mnist] [--seeds N] [--trials N] [--rounds N]
                               [--threads N] [--no-run] [--data-dir DIR]
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from trials import eager, gigaflops

from batchlab.backends.base import cores, limit_threads
from batchlab.laboratory import Request
from batchlab.progress import Live
from batchlab.spec import Phase, TrainSpec, TrialsSpec
from batchlab.speed import hardware
from batchlab.speed.comparison import paced, seconds
from batchlab.speed.contenders import Case, Naive
from batchlab.speed.limit import Rates, parameters, steps_a_second
from batchlab.studies import STUDIES
from batchlab.workloads import workload


class Kind(NamedTuple):
    """Steps that take one time: what else a phase says changes the result, not the work."""

    optimizer: str
    momentum: bool
    decay: bool
    batch_size: int

    @classmethod
    def of(cls, phase: Phase) -> "Kind":
        chosen = phase.optimizer
        return cls(chosen.name, chosen.momentum > 0, chosen.weight_decay > 0, phase.batch_size)

    @property
    def states(self) -> int:
        """Tensors of the parameters' size that the optimizer keeps."""
        return int(self.momentum) if self.optimizer == "sgd" else 2


class Plan(NamedTuple):
    """What a suite is made of."""

    runs: int
    steps: Counter[Kind]
    phases: dict[Kind, Phase]  # one of each kind
    passes: Counter[int]  # of trials, by batch size
    trials: tuple[TrialsSpec, ...]


def plan(request: Request, samples: int) -> Plan:
    """Every run that `reproduce` makes into an empty store, each once."""
    specs = request.specs()
    trials = tuple(s for s in specs if isinstance(s, TrialsSpec))
    runs = [s for s in specs if isinstance(s, TrainSpec)]
    runs = list(dict.fromkeys([*runs, *(s.start for s in trials)]))
    steps: Counter[Kind] = Counter()
    phases: dict[Kind, Phase] = {}
    for phase in (phase for spec in runs for phase in spec.schedule):
        steps[Kind.of(phase)] += phase.step_count(samples)
        phases.setdefault(Kind.of(phase), phase)
    passes: Counter[int] = Counter()
    for spec in trials:
        for size in spec.batch_sizes:
            passes[size] += spec.trials
    return Plan(len(runs), steps, phases, passes, trials)


class Times(NamedTuple):
    """Seconds of one round's extrapolation."""

    runs: float
    trials: float

    @property
    def all(self) -> float:
        return self.runs + self.trials


def limits(made: Plan, case: Case, rates: Mapping[Kind, Rates]) -> Times:
    """The least time of the plan's steps, each at the rates measured beside it, and of trials."""
    runs = sum(
        count / steps_a_second(case.widths, kind.batch_size, rates[kind], kind.states)
        for kind, count in made.steps.items()
    )
    model, rate = case.fresh(), median(r.flops for r in rates.values())
    trials = sum(spec.trials * gigaflops(spec, model) * 1e9 / rate for spec in made.trials)
    return Times(runs, trials)


def reproduce(name: str, seeds: int, draws: int, data_dir: Path | None) -> float:
    """Seconds from the command to its report."""
    with tempfile.TemporaryDirectory() as out:
        words = ["--workload", name, "--seeds", str(seeds), "--trials", str(draws), "--out", out]
        words += [] if data_dir is None else ["--data-dir", str(data_dir)]
        began = time.perf_counter()
        command = [sys.executable, "-m", "batchlab", "reproduce", *words, "--json"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - began


def told(name: str, rounds: list[Times]) -> None:
    """A line of one side."""
    totals = [times.all for times in rounds]
    runs, trials = median(t.runs for t in rounds), median(t.trials for t in rounds)
    print(
        f"{name:22}{median(totals):10.1f} s ({min(totals):.1f} to {max(totals):.1f}): "
        f"runs {runs:.1f}, trials {trials:.1f}"
    )


def main() -> None:
    """Print the plan, the extrapolations, and what `reproduce` took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workload", default="digits")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--trials", type=int, help="draws; the workload's own by default")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--no-run", action="store_true", help="the extrapolations alone")
    parser.add_argument("--data-dir", type=Path)
    given = parser.parse_args()
    limit_threads(given.threads)
    load = hardware.load()
    protocol = workload(given.workload).protocol
    if given.trials is not None:
        protocol = protocol.with_draws(given.trials)
    case = Case.of(given.workload, given.data_dir, "cpu")
    request = Request(protocol=protocol, seeds=given.seeds, studies=tuple(STUDIES))
    made = plan(request, protocol.train_samples)
    x, y = (t[: protocol.trial_samples] for t in (case.data.train_x, case.data.train_y))
    contenders = {kind: Naive(case, phase) for kind, phase in made.phases.items()}
    counts = {kind: paced(one, case) for kind, one in contenders.items()}
    naive, floor = [], []
    with Live(unit="rounds") as progress:
        progress.plan([1.0] * given.rounds, [f"round {k}" for k in range(given.rounds)])
        for turn in range(given.rounds):
            runs = trials = 0.0
            rates: dict[Kind, Rates] = {}
            for kind, one in contenders.items():
                rates[kind] = hardware.measure(parameters(case.widths), case.device)
                runs += made.steps[kind] * seconds(one, counts[kind], case) / counts[kind]
            for size, count in made.passes.items():
                trials += count * eager(case.fresh(), x, y, size, protocol.learning_rate)
            naive.append(Times(runs, trials))
            floor.append(limits(made, case, rates))
            progress.finish(turn, "finished")
    print(
        f"{given.workload}, {given.seeds} seeds: {made.runs} runs of {made.steps.total():,} steps, "
        f"{made.passes.total():,} passes of trials; torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads, load before {load}, medians of "
        f"{given.rounds} rounds"
    )
    told("naive, EXTRAPOLATED", naive)
    told("limit, EXTRAPOLATED", floor)
    if not given.no_run:
        spent = reproduce(given.workload, given.seeds, protocol.draws, given.data_dir)
        over = [n.all / spent for n in naive]
        times = [spent / f.all for f in floor]
        print(f"{'reproduce, measured':22}{spent:10.1f} s, once, {cores()} processes")
        print(
            f"extrapolated naive over reproduce: {median(over):.2f} ({min(over):.2f} to "
            f"{max(over):.2f}); reproduce over limit: {median(times):.1f} ({min(times):.1f} to "
            f"{max(times):.1f})"
        )


if __name__ == "__main__":
    main()
