"""The article's whole suite: naive scripts one after another, `reproduce`, the hardware's limit.

Nobody waits for the naive suite: its time is EXTRAPOLATED. A step of the naive script is timed at
every batch size and with every optimizer that the plan has, and multiplied by the plan's steps; a
trial is the eager pass of benchmarks/trials.py at each batch size, times the passes. It trains
every run from its beginning and makes none of the measurements that the suite makes (loss and
accuracy of both splits every epoch, all that is measured on a trial), so the naive side is
favoured.

The limit is that of what the plan trains, each stretch once: the sum of its steps' limits
(`batchlab.speed.limit`), of the trials' least arithmetic (benchmarks/trials.py) and of the products
that evaluate both splits wherever the specs ask for it, at the rates of float32 products measured
in the same rounds. Both use all threads for one run at a time. `reproduce` is timed as its command:
from nothing to the report, with as many processes as there are cores. `--out` keeps what it made,
and an hour of it can be sat through in parts: an interrupted one goes on from there, and the
seconds of all its sittings are added (what a sitting repeats of the one before is counted twice).
On a machine with other work on it the threads of a naive step wait for one another, and its
extrapolation can be off by a factor of a hundred: look at the load before, and at `--threads 1`.

    python benchmarks/suite.py [--workload digits|mnist] [--seeds N] [--trials N] [--rounds N]
                               [--threads N] [--matmul float32|bf16] [--out DIR] [--no-run]
                               [--data-dir DIR]
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from trials import eager, gigaflops

from batchlab.backends.base import cores, limit_threads
from batchlab.laboratory import Request
from batchlab.plan import make_plan
from batchlab.progress import Live
from batchlab.spec import MATMULS, Phase, TrainSpec, TrialsSpec
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
    steps: Counter[Kind]  # of every run from its beginning
    trained: Counter[Kind]  # each stretch once
    evaluations: int  # of both splits
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
    phases = {Kind.of(phase): phase for spec in runs for phase in spec.schedule}
    for run in runs:
        steps += counted(run.schedule, samples)
    trained: Counter[Kind] = Counter()
    evaluations = 0
    for stretch in make_plan(specs, {}, {}, lambda _: samples).stretches:
        before = stretch.begin.schedule if stretch.begin else ()
        trained += counted(stretch.spec.schedule, samples) - counted(before, samples)
        last = stretch.first + stretch.steps
        evaluations += sum(stretch.first < step <= last for step in stretch.needs.full)
        evaluations += stretch.begin is None  # the initial point
    passes: Counter[int] = Counter()
    for spec in trials:
        for size in spec.batch_sizes:
            passes[size] += spec.trials
    return Plan(len(runs), steps, trained, evaluations, phases, passes, trials)


def counted(schedule: Iterable[Phase], samples: int) -> Counter[Kind]:
    """Steps of each kind."""
    steps: Counter[Kind] = Counter()
    for phase in schedule:
        steps[Kind.of(phase)] += phase.step_count(samples)
    return steps


class Times(NamedTuple):
    """Seconds of one round's extrapolation."""

    runs: float
    trials: float
    evaluations: float = 0.0

    @property
    def all(self) -> float:
        return self.runs + self.trials + self.evaluations


def limits(made: Plan, case: Case, rates: Mapping[Kind, Rates]) -> Times:
    """The least time of what is trained, each step at the rates measured beside it, and so on."""
    runs = sum(
        count / steps_a_second(case.widths, kind.batch_size, rates[kind], kind.states)
        for kind, count in made.trained.items()
    )
    model, rate = case.fresh(), median(r.flops for r in rates.values())
    trials = sum(spec.trials * gigaflops(spec, model) * 1e9 / rate for spec in made.trials)
    samples = len(case.data.train_x) + len(case.data.test_x)
    products = 2 * samples * sum(i * o for i, o in pairwise(case.widths))
    return Times(runs, trials, made.evaluations * products / rate)


def reproduce(words: Sequence[str], out: Path) -> list[float]:
    """Seconds of each sitting, the last of which ends with the report."""
    kept = out / "sittings.json"
    sittings = json.loads(kept.read_text()) if kept.exists() else []
    began = time.perf_counter()
    command = [sys.executable, "-m", "batchlab", "reproduce", *words, "--out", str(out), "--json"]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        status = child.wait()
    except KeyboardInterrupt:
        status = child.wait()  # it was interrupted too: it keeps its checkpoints first
    sittings.append(time.perf_counter() - began)
    out.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(sittings))
    if status:
        sys.exit(status)
    return sittings


def told(name: str, rounds: list[Times]) -> None:
    """A line of one side."""
    totals = [times.all for times in rounds]
    parts = [f"{part} {median(getattr(t, part) for t in rounds):.1f}" for part in Times._fields]
    print(
        f"{name:22}{median(totals):10.1f} s ({min(totals):.1f} to {max(totals):.1f}): "
        f"{', '.join(parts)}"
    )


def main() -> None:
    """Print the plan, the extrapolations, and what `reproduce` took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workload", default="digits")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--trials", type=int, help="draws; the workload's own by default")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--matmul", default=MATMULS[0], choices=MATMULS, help="of `reproduce`")
    parser.add_argument("--out", type=Path, help="keep what `reproduce` makes here")
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
        progress.plan([1.0] * given.rounds)
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
            progress.finish(turn)
    print(
        f"{given.workload}, {given.seeds} seeds: {made.runs} runs of {made.steps.total():,} steps, "
        f"{made.trained.total():,} of them trained, {made.evaluations:,} "
        f"evaluations, {made.passes.total():,} passes of trials; torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads, load before {load}, medians of "
        f"{given.rounds} rounds"
    )
    told("naive, EXTRAPOLATED", naive)
    told("limit, EXTRAPOLATED", floor)
    if given.no_run:
        return
    words = ["--workload", given.workload, "--seeds", str(given.seeds), "--matmul", given.matmul]
    words += ["--trials", str(protocol.draws)]
    words += [] if given.data_dir is None else ["--data-dir", str(given.data_dir)]
    with tempfile.TemporaryDirectory() as gone:
        sittings = reproduce(words, given.out or Path(gone))
    spent = sum(sittings)
    print(
        f"{'reproduce, measured':22}{spent:10.1f} s, once, in {len(sittings)} sittings, "
        f"{cores()} processes, {given.matmul}"
    )
    sides = {
        "extrapolated naive over reproduce": [n.all / spent for n in naive],
        "reproduce over limit": [spent / f.all for f in floor],
        "the limit without evaluations": [spent / (f.runs + f.trials) for f in floor],
    }
    for side, ratios in sides.items():
        print(f"{side}: {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
