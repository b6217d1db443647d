"""A store of many runs: seconds of the commands that only look, beside a store of a few.

A small study is reproduced in both; into one go many made-up runs besides. Each command is a fresh
process, imports included; the smallest of the rounds, of the processor (user and system) and of the
clock. Bar: 3 s with 100,000 runs.

    python benchmarks/store.py [--runs N] [--rounds N] [--out DIR]
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from batchlab.record import Record
from batchlab.spec import Cadence, Phase
from batchlab.store.database import FILE, Run, Store
from batchlab.workloads import workload

LAYERS = ("weights", "biases", "0.weight", "2.weight", "4.weight")
AT_ONCE = 5000  # runs a transaction
STUDY = ("--scale", "smoke", "--seeds", "1", "--study", "switching")


def fill(store: Store, runs: int) -> None:
    """So many runs of 60 records each, one seed after another."""
    protocol = workload("digits").protocol
    spec = protocol.spec(
        [Phase(batch_size=8, learning_rate=0.01, epochs=30)], 0, Cadence.doubling()
    )
    names = [("test_accuracy", "all"), ("train_loss", "all")]
    names += [(name, layer) for name in ("distance", "norm") for layer in LAYERS]
    for begin in range(0, runs, AT_ONCE):
        with store.connection.transaction():
            for seed in range(begin, min(begin + AT_ONCE, runs)):
                one = spec.model_copy(update={"seed": 10**6 + seed})
                records = [
                    Record(step, step / 180, step * 8, name, layer, seed + step / 7)
                    for step in range(0, 5000, 1000)
                    for name, layer in names
                ]
                run = Run(one.key, "train", one.canonical(), "finished", 5400, 1.5, "{}")
                store.write(run, records)


def timed(*words: str) -> tuple[float, float]:
    """Seconds of a command, of the processor and of the clock; it must succeed."""
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-m", "batchlab", *words], check=True, stdout=subprocess.DEVNULL
    )
    after, seconds = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic() - began
    spent = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return round(spent, 2), round(seconds, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        out = asked.out or Path(name)
        commands = {}
        for size in ("few", "many"):
            root = out / size
            again = ("reproduce", *STUDY, "--out", str(root), "--json")
            print(f"{size}: reproduced in {timed(*again)[1]:.1f} s", flush=True)
            commands[size] = {
                "runs": ("runs", "--store", str(root / "store"), "--json"),
                "findings": ("findings", "--store", str(root / "store"), "--json"),
                "a second reproduce": again,
            }
        began = time.monotonic()
        with Store(out / "many" / "store") as store:
            if len(store.states()) < asked.runs:
                fill(store, asked.runs)
        size_mb = (out / "many" / "store" / FILE).stat().st_size / 1e6
        print(f"{asked.runs:,} runs added in {time.monotonic() - began:.0f} s, {size_mb:.0f} MB")
        for name_ in commands["few"]:
            table = {
                size: min(timed(*commands[size][name_]) for _ in range(asked.rounds))
                for size in commands
            }
            print(f"{name_}: {json.dumps(table)}", flush=True)


if __name__ == "__main__":
    main()
