"""How speed scales: with the model's width, with the size of the data, with the number of seeds.

`width` compares the contenders of `batchlab bench` on perceptrons of two equally wide hidden
layers, in steps a second. `data` times whole epochs of each on a part of the training samples,
shuffling included, in seconds an epoch. `seeds` runs one spec with more and more seeds by the
processes backend, each time into a new store; its seconds are wall time, the start of the
processes included. Ratios are of one round: median (smallest to largest) over the rounds.

    python benchmarks/scaling.py width|data|seeds [--workload W] [--batch-size B] [--rounds N]
                                 [--threads N] [--epochs N] [--data-dir DIR]
"""

import argparse
import time
from collections.abc import Mapping
from dataclasses import replace
from math import ceil
from pathlib import Path
from statistics import median

from batchlab import laboratory as lab
from batchlab.backends.base import Wanted, cores, limit_threads
from batchlab.jobs import Site
from batchlab.progress import Live
from batchlab.spec import Cadence, Model, Phase
from batchlab.speed import hardware
from batchlab.speed.comparison import Spread, compare
from batchlab.speed.contenders import Case
from batchlab.workloads import workload

WIDTHS = (128, 256, 512, 1024, 2048)
PARTS = (16, 8, 4, 2, 1)  # one over the part of the training samples
SEEDS = (1, 2, 5, 10, 20)
LEAST_ROWS = 4096  # of a turn that is to be of whole epochs: as many epochs as that takes


def compared(
    first: Mapping[str, str], case: Case, size: int, rounds: int, epochs: int | None = None
) -> None:
    """Print one batch size of the case after `first`: steps a second, or seconds an epoch."""
    steps = len(case.data.train_x) // size
    with Live(unit="measurements") as progress:
        told = compare(
            case,
            (size,),
            rounds,
            progress=progress,
            steps=None if epochs is None else epochs * steps,
        )
    cells = dict(first) | told.rows[0].cells()
    if epochs is not None:
        cells |= {name: f"{steps / v:.4g}" for name, v in told.rows[0].speeds().items()}
    cells |= {"GFLOP/s": f"{told.gigaflops:.0f}", "GB/s": f"{told.gigabytes:.0f}"}
    show(cells)


def show(cells: Mapping[str, str]) -> None:
    """A row of a table."""
    wide = {name: 24 if "over" in name or "of" in name else 12 for name in cells}
    print("".join(f"{text:{wide[name]}}" for name, text in cells.items()), flush=True)


def head(*names: str) -> None:
    """The names of a table's columns."""
    show({name: name for name in names})


COMPARED = (
    "batch_size",
    *("naive", "eager", "batchlab", "limit"),
    *("over_naive", "over_eager", "of_limit"),
    *("GFLOP/s", "GB/s"),
)


def width(case: Case, size: int, rounds: int) -> None:
    """The same data and batch size, wider and wider hidden layers; steps a second."""
    head("hidden", *COMPARED)
    for units in WIDTHS:
        wide = replace(case, model=Model(hidden=(units, units)))
        compared({"hidden": str(units)}, wide, size, rounds)


def data(case: Case, size: int, rounds: int) -> None:
    """The same model and batch size, more and more samples; seconds an epoch."""
    head("samples", *COMPARED)
    for part in PARTS:
        samples = len(case.data.train_x) // part
        x_NI, y_N = case.data.train_x[:samples], case.data.train_y[:samples]
        some = replace(case, data=replace(case.data, train_x=x_NI, train_y=y_N))
        epochs = ceil(LEAST_ROWS / samples)
        compared({"samples": str(samples)}, some, size, rounds, epochs)


def seeds(name: str, phase: Phase, rounds: int, data_dir: Path | None) -> None:
    """The same spec, more and more seeds; seconds of wall time."""
    protocol, backend = workload(name).protocol, lab.choose_backend("processes", Wanted())
    spent: dict[int, list[float]] = {count: [] for count in SEEDS}
    for _ in range(rounds):
        for count in SEEDS:
            specs = [protocol.spec([phase], seed, Cadence.doubling()) for seed in range(count)]
            with lab.open_store(None) as store, Live() as progress:
                bench = lab.Bench(store, backend, Site(store.root, data_dir, "cpu"), progress)
                began = time.perf_counter()
                bench.run(specs)
                spent[count].append(time.perf_counter() - began)
    print(f"{name}, {phase.label()}, {cores()} processes, seconds of wall time")
    head("seeds", "seconds", "over_one_seed", "over_as_many_alone")
    for count, seconds in spent.items():
        cells = {
            "seeds": str(count),
            "seconds": f"{median(seconds):.2f}",
            "over_one_seed": str(Spread.of(seconds, spent[1])),
            "over_as_many_alone": str(Spread.of(seconds, [count * one for one in spent[1]])),
        }
        show(cells)


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
    machine = hardware.describe(case.device)
    print(", ".join([name, *(f"{what} {value}" for what, value in machine.items())]))
    print(f"load before: {hardware.load()}")
    if size > len(case.data.train_x) // PARTS[0]:
        parser.error(f"--batch-size {size}: at most {len(case.data.train_x) // PARTS[0]}")
    {"width": width, "data": data}[given.what](case, size, given.rounds)


if __name__ == "__main__":
    main()
