"""Commands on a workload of the user's own: parses, wires, prints."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from batchlab.backends import BACKENDS
from batchlab.backends.base import cores
from batchlab.options import DataDir, Json, Workers, check_device, check_seed
from batchlab.printing import say_json, say_rows
from batchlab.progress import Live
from batchlab.spec import UserError, parse_sizes
from batchlab.stopping import stopping

if TYPE_CHECKING:
    from batchlab.sweep.result import Result

# Not typer's defaults, which could not be told from what is given beside --read.
TRIALS, SEEDS, BUDGET, SEED, DEVICE, OUT = 15, 5, "40e", 0, "cpu", Path("out/sweep")

Target = Annotated[
    str | None,
    typer.Argument(help="digits, mnist, package.module:factory or file.py:factory"),
]


def sweep(
    target: Target = None,
    batch_sizes: Annotated[
        str | None,
        typer.Option(help="separated by commas; else the present one times 1/16 to 64"),
    ] = None,
    value: Annotated[
        float | None,
        typer.Option("--target", help="of the validation metric; else the workload's, or derived"),
    ] = None,
    trials: Annotated[
        int | None, typer.Option(min=3, help=f"learning rates tried at every size; else {TRIALS}")
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help=f"repetitions of the best one; else {SEEDS}")
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(help=f"samples (60000) or epochs (20e) that a run may see; else {BUDGET}"),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help=f"fixes initialisation, data order and draws; else {SEED}"),
    ] = None,
    workers: Workers = None,
    device: Annotated[str | None, typer.Option(help=f"cpu or cuda; else {DEVICE}")] = None,
    data_dir: DataDir = None,
    out: Annotated[
        Path | None,
        typer.Option(help=f"where every run is kept, and a sweep goes on from; else {OUT}"),
    ] = None,
    read: Annotated[
        Path | None,
        typer.Option(help="measure nothing: a sweep's --out, or a folder of Shallue et al.'s data"),
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="with --read of Shallue et al.'s data: a column of theirs")
    ] = None,
    as_json: Json = False,
) -> None:
    """Train at every batch size to a target, with a learning-rate search at each: ground truth."""
    if read is not None:
        measuring = {
            "TARGET": target,
            "--batch-sizes": batch_sizes,
            "--trials": trials,
            "--seeds": seeds,
            "--budget": budget,
            "--seed": seed,
            "--workers": workers,
            "--device": device,
            "--data-dir": data_dir,
            "--out": out,
        }
        for name, given in measuring.items():
            if given is not None:
                raise UserError(f"--read {read}: measures nothing; give it or {name} {given}")
        done = _read(read, value, metric)
    elif target is None:
        raise UserError("TARGET: digits, mnist, package.module:factory, file.py:factory or --read")
    elif metric is not None:
        raise UserError("--metric: is for --read; a workload has its own")
    else:
        done = _measure(
            target,
            None if batch_sizes is None else parse_sizes(batch_sizes),
            value,
            trials or TRIALS,
            seeds or SEEDS,
            BUDGET if budget is None else budget,
            SEED if seed is None else seed,
            workers,
            DEVICE if device is None else device,
            data_dir,
            out or OUT,
        )
    if as_json:
        say_json({"said": done.said, **done.json()})
        return
    print(done.said)
    say_rows([row.cells() for row in done.rows])
    for line in done.lines():
        print(line)


def _measure(
    target: str,
    sizes: tuple[int, ...] | None,
    value: float | None,
    trials: int,
    seeds: int,
    budget: str,
    seed: int,
    workers: int | None,
    device: str,
    data_dir: Path | None,
    out: Path,
) -> "Result":
    from batchlab.workloads.budget import Budget

    check_seed(seed)
    limit = Budget.parse(budget)
    from batchlab.backends.base import Wanted, limit_threads
    from batchlab.sweep.measure import load
    from batchlab.sweep.protocol import Asked, Place, sizes_of
    from batchlab.sweep.run import sweep as run

    check_device(device)
    limit_threads(1)  # as in every worker: the numbers depend on it
    place = Place(target, data_dir, device, seed)
    workload = load(place)
    chosen = sizes_of(workload, sizes)
    asked = Asked(
        target=value,
        budget=limit.samples(len(workload.train)),
        trials=trials,
        seed=seed,
    )
    count = 1 if workload.device.type == "cuda" else min(workers or cores(), len(chosen))
    backend = BACKENDS["serial" if count == 1 else "processes"](Wanted(count, 1))
    with Live(unit="batch sizes") as progress, stopping() as stop:
        return run(place, asked, chosen, seeds, out, backend, progress, stop)


def _read(folder: Path, goal: float | None, metric: str | None) -> "Result":
    from batchlab.analysis.shallue import ERROR
    from batchlab.sweep.published import published
    from batchlab.sweep.run import HEAD, read_sweep

    if (folder / HEAD).exists():
        if goal is not None or metric is not None:
            raise UserError(f"--read {folder}: a sweep has its own target and metric")
        return read_sweep(folder)
    return published(folder, goal, metric or ERROR)
