"""Options that several commands share, and how their values are checked."""

from math import isfinite
from pathlib import Path
from typing import Annotated

import typer

from batchlab.spec import UserError, one_of


def _known(workload: str) -> str:
    from batchlab.workloads import WORKLOADS

    return one_of("--workload", workload, list(WORKLOADS))


def _finite(seconds: float) -> float:
    if not isfinite(seconds):
        raise UserError(f"--save-every {seconds}: must be a finite number of seconds")
    return seconds


Seed = Annotated[int, typer.Option(help="fixes initialisation, data order and draws")]
DataDir = Annotated[
    Path | None, typer.Option(help="where data files are; else BATCHLAB_DATA_DIR, cache, download")
]
Workers = Annotated[int | None, typer.Option(min=1, help="jobs at once; else all cores' worth")]
Device = Annotated[str, typer.Option(help="cpu or cuda")]
Json = Annotated[bool, typer.Option("--json", help="one JSON document on standard output")]
Workload = Annotated[str, typer.Option(help="digits or mnist", callback=_known)]
StoreDir = Annotated[Path | None, typer.Option("--store", help="where runs are kept")]
StoreThere = Annotated[Path, typer.Option("--store", help="where runs are kept")]
BackendName = Annotated[str, typer.Option("--backend", help="serial, processes or ray")]
Threads = Annotated[int | None, typer.Option(min=1, help="threads of each worker")]
CheckpointsAt = Annotated[
    str | None,
    typer.Option(
        "--checkpoints",
        metavar="ADDRESS",
        help="keep checkpoints there, not in the store: s3://BUCKET/PREFIX, gs://..., a directory",
    ),
]
Address = Annotated[
    str | None, typer.Option(help="of a Ray cluster: HOST:PORT or auto; else Ray is started here")
]
GpusPerJob = Annotated[
    float | None, typer.Option(help="part of a GPU that Ray keeps for a job; else a whole one")
]
MemoryPerJob = Annotated[int | None, typer.Option(min=1, help="MiB that Ray keeps for a job")]
SaveEvery = Annotated[
    float,
    typer.Option(min=0, help="seconds between checkpoints of runs under way", callback=_finite),
]
MatmulName = Annotated[str, typer.Option("--matmul", help="float32, bf16 or tf32")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="print the plan and stop")]


def check_device(name: str) -> str:
    """The device, if there is one of that name here."""
    one_of("--device", name, ["cpu", "cuda"])
    if name == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise UserError("--device cuda: PyTorch sees no GPU here; use cpu")
    return name


def check_seed(seed: int) -> None:
    """As specs have it, before anything heavy is imported."""
    if not 0 <= seed < 2**63:
        raise UserError(f"--seed {seed}: must be a whole number from 0 to 2^63 - 1")
