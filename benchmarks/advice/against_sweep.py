"""Advice against ground truth: `batchlab advise --verify` beside `batchlab sweep`, by workload.

For each workload one sweep over powers of two, and the advice under several seeds, each as its
command on one thread, one after the other. A row a workload: the sweep's size of least time and
those it can't tell from it; the seeds' ranges and best sizes; the verdicts; what the recommended
size takes over the sweep's best (the sweep's seconds, between its sizes in log-log); and the
samples that the advice trained on over the sweep's. A seed is right where its range has the sweep's
best size in it, or its best size takes at most 15% more; `+` stands for "or more" and counts for
nothing.

    python benchmarks/advice/against_sweep.py [--workloads digits_mlp,...] [--seeds N]
                                              [--sizes LIST] [--trials N] [--out DIR]

`--out` keeps the sweeps, which go on from there.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from math import exp, log
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from batchlab.printing import say_rows
from batchlab.progress import Live

HERE = Path(__file__).parent
WORKLOADS = ("digits_mlp", "mnist_mlp", "mnist_cnn", "language", "regression")
WITHIN = 1.15  # of the sweep's best time


def told(words: Sequence[object]) -> dict[str, Any]:
    """What a command prints with `--json`."""
    command = [sys.executable, "-m", "batchlab", *map(str, words), "--json"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def trained(out: Path) -> int:
    """Samples that a sweep has trained on, its look for a target included."""
    rows = [json.loads(line) for path in out.glob("*.jsonl") for line in path.open()]
    return round(sum(float(row["samples"]) for row in rows))


def over_best(rows: Sequence[dict[str, Any]], size: float) -> float:
    """Seconds at a size over the least of all, between the sweep's sizes in log-log."""
    timed = [(r["batch_size"], r["seconds"]["effect"]) for r in rows if r["seconds"]["effect"]]
    sizes, seconds = zip(*timed, strict=True)
    here = float(np.interp(log(size), np.log(sizes), np.log(seconds)))
    return float(exp(here) / min(seconds))


def row(name: str, seeds: int, sizes: str, trials: int, out: Path) -> dict[str, object]:
    """One workload's sweep and advice."""
    target = f"{HERE / name}.py:factory"
    kept = out / name
    swept = told(
        ["sweep", target, "--batch-sizes", sizes, "--trials", trials, "--workers", 1, "--out", kept]
    )
    fastest, whole = swept["fastest"], trained(kept)
    ranges, bests, verdicts, over, right, cost = [], [], [], [], 0, []
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as gone:
            words = ["advise", target, "--verify", "--seed", seed, "--threads", 1, "--out", gone]
            advice = told(words)
        cost.append(sum(c["samples"] for c in advice["evidence"]["cost"]) / whole)
        verdicts.append(advice["tested"])
        if (use := advice["recommended"]) is None:
            ranges.append("can't tell")
            continue
        ranges.append(f"{use['low']}-{use['high']}{'+' * use['or_more']}")
        bests.append(use["best"])
        over.append(over_best(swept["rows"], use["best"]))
        right += use["low"] <= fastest[0] <= use["high"] or over[-1] <= WITHIN
    return {
        "workload": name,
        "sweep's best": fastest[0],
        "not told apart": ", ".join(map(str, sorted(fastest[1:]))),
        "advice": ", ".join(ranges),
        "best": f"{median(bests):g} ({min(bests)} to {max(bests)})" if bests else "",
        "time over the best": f"{median(over):.2f} (to {max(over):.2f})" if over else "",
        "right": f"{right}/{len(bests)}",
        "tested": ", ".join(f"{verdicts.count(v)} {v}" for v in dict.fromkeys(verdicts)),
        "samples over the sweep's": f"{median(cost):.1%} of {whole:,}",
    }


def main() -> None:
    """Print a row a workload."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workloads", default=",".join(WORKLOADS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--sizes", default="4,8,16,32,64,128,256,512")
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    names = given.workloads.split(",")
    with tempfile.TemporaryDirectory() as gone, Live(unit="workloads") as progress:
        progress.plan([1.0] * len(names))
        rows = []
        for index, name in enumerate(names):
            made = row(name, given.seeds, given.sizes, given.trials, given.out or Path(gone))
            rows.append(made)
            print(json.dumps(made), file=sys.stderr, flush=True)
            progress.finish(index)
    say_rows(rows)


if __name__ == "__main__":
    main()
