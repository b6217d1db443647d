"""`batchlab advise`: which batch size to use for one's own model, and whether that is true."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from batchlab.backends.base import limit_threads
from batchlab.options import DataDir, Device, Json, Seed, Threads, check_device, check_seed
from batchlab.printing import say_json
from batchlab.progress import Live

MIB = 2**20


def advise(
    target: Annotated[
        str, typer.Argument(help="digits, mnist, package.module:factory or file.py:factory")
    ],
    seed: Seed = 0,
    budget: Annotated[
        str,
        typer.Option(help="of the present setting's run: samples (20000), epochs (10e) or seconds"),
    ] = "10e",
    verify: Annotated[
        bool, typer.Option("--verify", help="test the prediction by short branches")
    ] = False,
    goal: Annotated[
        float | None,
        typer.Option("--target", help="the metric's or the loss's value that training is for"),
    ] = None,
    out: Annotated[Path, typer.Option(help="where measurements and the page go")] = Path("advice"),
    device: Device = "cpu",
    data_dir: DataDir = None,
    memory_cap: Annotated[
        int | None, typer.Option(min=1, help="MiB a step may take; on the CPU half of what is free")
    ] = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Measure a training job, predict its best batch sizes, and with --verify test that."""
    from batchlab.workloads.budget import Budget

    check_seed(seed)
    limit = Budget.parse(budget)
    from batchlab.advice.advise import advise as run
    from batchlab.advice.page import page
    from batchlab.documents import writing
    from batchlab.report.answer import write_answer

    if threads is not None:
        limit_threads(threads)
    check_device(device)
    try:
        with Live() as progress:
            advice = run(
                target,
                seed=seed,
                budget=limit,
                verify=verify,
                target=goal,
                out=out,
                device=device,
                data_dir=data_dir,
                memory_cap=None if memory_cap is None else memory_cap * MIB,
                say=progress.say,
            )
    except KeyboardInterrupt:
        print(f"batchlab: stopped; what was measured is in {out}", file=sys.stderr)
        raise typer.Exit(130) from None
    with writing(out):
        written = write_answer(page(advice), out)
    if as_json:
        say_json(advice.json())
        print(f"report: {written}", file=sys.stderr)
    else:
        print(advice)
        print(f"report: {written}")
