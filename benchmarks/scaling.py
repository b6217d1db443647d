"""How speed scales: with the model's width, with the size of the data, with the number of seeds.

`width` compares the contenders of `batchlab bench` on perceptrons of two equally wide hidden
layers. `data` times whole epochs of each on a part of the training samples, the shuffling
included. `seeds` runs one spec of the workload, `epochs` long, with more and more seeds by the
processes backend, each time into a new store; its seconds are wall time, the start of the
processes included. Ratios are of one round: median (smallest to largest) over the rounds.

    python benchmarks/scaling.py width|data|seeds [--workload W] [--batch-size B] [--rounds N]
                                 [--threads N] [--epochs N] [--data-dir DIR]
"""

import argparse
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median

from batchlab import laboratory as lab
from batchlab.backends.base import cores, limit_threads
from batchlab.progress import Live
from batchlab.runner import Site
from batchlab.spec import Cadence, Model, Phase
from batchlab.speed.comparison import Comparison, Spread, compare
from batchlab.speed.contenders import Case
from batchlab.workloads import workload

WIDTHS = (128, 256, 512, 1024, 2048)
PARTS = (16, 8, 4, 2, 1)  # one over the part of the training samples
SEEDS = (1, 2, 5, 10, 20)


def compared(case: Case, size: int, rounds: int, steps: int | None = None) -> Comparison:
    """One batch size of the case."""
    with Live(unit="measurements") as progress:
        return compare(case, (size,), rounds, progress=progress, steps=steps)


def show(cells: Mapping[str, str], *, head: bool) -> None:
    """A row, under the names of its columns where it is the first."""
    wide = {name: max(len(name), 22 if "of" in name or "over" in name else 9) for name in cells}
    if head:
        print("  ".join(f"{name:{wide[name]}}" for name in cells))
    print("  ".join(f"{text:{wide[name]}}" for name, text in cells.items()), flush=True)


def width(case: Case, size: int, rounds: int) -> None:
    """The same data and batch size, wider and wider hidden layers; steps a second."""
    for units in WIDTHS:
        told = compared(replace(case, model=Model(hidden=(units, units))), size, rounds)
        print(told.head())
        show({"hidden": str(units)} | told.rows[0].cells(), head=units == WIDTHS[0])


def data(case: Case, size: int, rounds: int) -> None:
    """The same model and batch size, more and more samples; seconds an epoch."""
    for part in PARTS:
        samples = len(case.data.train_x) // part
        x_NI, y_N = case.data.train_x[:samples], case.data.train_y[:samples]
        some = replace(case, data=replace(case.data, train_x=x_NI, train_y=y_N))
        steps = samples // size
        told = compared(some, size, rounds, steps)
        row = told.rows[0]
        seconds = {name: f"{steps / speed:.4g}" for name, speed in row.speeds().items()}
        ratios = {name: str(ratio) for name, ratio in row.ratios().items()}
        print(told.head())
        show({"samples": str(samples)} | seconds | ratios, head=part == PARTS[0])


def seeds(name: str, phase: Phase, rounds: int, data_dir: Path | None) -> None:
    """The same spec, more and more seeds; seconds of wall time."""
    protocol, backend = workload(name).protocol, lab.choose_backend("processes", None, None)
    spent: dict[int, list[float]] = {count: [] for count in SEEDS}
    for _ in range(rounds):
        for count in SEEDS:
            specs = [protocol.spec([phase], seed, Cadence.doubling()) for seed in range(count)]
            with lab.open_store(None) as store, Live() as progress:
                bench = lab.Bench(store, backend, Site(store.root, data_dir, "cpu"), progress)
                began = time.perf_counter()
                bench.run(specs)
                spent[count].append(time.perf_counter() - began)
    print(f"{name}, {phase.label()}, {cores()} processes")
    for count, seconds in spent.items():
        cells = {
            "seeds": str(count),
            "seconds": f"{median(seconds):.2f}",
            "over one seed": str(Spread.of(seconds, spent[1])),
            "over as many alone": str(Spread.of(seconds, [count * one for one in spent[1]])),
        }
        show(cells, head=count == SEEDS[0])


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("width", "data", "seeds"))
    parser.add_argument("--workload", help="digits for seeds, else mnist")
    parser.add_argument("--batch-size", type=int, help="the article's 64, on this workload")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=cores(), help="of width and data")
    parser.add_argument("--epochs", type=int, default=30, help="of each seed's run")
    parser.add_argument("--data-dir", type=Path)
    given = parser.parse_args()
    name = given.workload or ("digits" if given.what == "seeds" else "mnist")
    protocol = workload(name).protocol
    size = given.batch_size or protocol.small
    if given.what == "seeds":
        phase = Phase(batch_size=size, learning_rate=protocol.learning_rate, epochs=given.epochs)
        seeds(name, phase, given.rounds, given.data_dir)
        return
    limit_threads(given.threads)
    case = Case.of(name, given.data_dir, "cpu")
    if size > len(case.data.train_x) // PARTS[0]:
        parser.error(f"--batch-size {size}: at most {len(case.data.train_x) // PARTS[0]}")
    {"width": width, "data": data}[given.what](case, size, given.rounds)


if __name__ == "__main__":
    main()
