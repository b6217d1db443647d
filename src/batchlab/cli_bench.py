"""`batchlab bench`: this machine's speed."""

import sys
from typing import Annotated

import typer

from batchlab.backends.base import cores, limit_threads
from batchlab.options import DataDir, Device, Json, Threads, Workload, check_device
from batchlab.printing import say_json, say_rows
from batchlab.progress import Live


def bench(
    workload: Workload = "digits",
    batch_sizes: Annotated[
        str | None, typer.Option(help="separated by commas; 1 to 4096 by default")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="in which the contenders take turns")] = 5,
    threads: Threads = None,
    device: Device = "cpu",
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """This machine's steps a second beside a naive script's and the hardware's limit."""
    from batchlab.speed.comparison import LEGEND, choose_sizes, compare
    from batchlab.speed.contenders import Case

    sizes = choose_sizes(workload, batch_sizes)
    limit_threads(threads or cores())
    case = Case.of(workload, data_dir, check_device(device))
    try:
        with Live(unit="measurements") as progress:
            comparison = compare(case, sizes, rounds, progress=progress)
    except KeyboardInterrupt:
        print("batchlab: stopped; nothing of a comparison is kept", file=sys.stderr)
        raise typer.Exit(130) from None
    if as_json:
        say_json(comparison.json())
    else:
        print(comparison.head())
        say_rows([row.cells() for row in comparison.rows])
        print(LEGEND)
