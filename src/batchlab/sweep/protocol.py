"""What a sweep is asked for, checked, and which batch sizes, budget and target it comes to."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from batchlab.engine.target_run import Better, judged_by
from batchlab.spec import Count, Frozen, Seed, UserError
from batchlab.workloads.optimizers import describe
from batchlab.workloads.prepared import Prepared

FACTOR, SMALLER, LARGER = 4, 2, 3  # batch sizes: the present one times 4^-2 to 4^3
PILOT_PART = 4  # of the budget: what the present setting may take to show the target
PILOT_SEEDS = 3


class Protocol(Frozen):
    """What every run of a sweep is made by; two sweeps of one protocol are one."""

    target: Annotated[float, Field(allow_inf_nan=False)]
    better: Better
    metric: str
    budget: Count  # samples that a run may see
    trials: Annotated[int, Field(ge=3)]  # learning rates tried at every batch size
    seed: Seed

    def steps(self, size: int) -> int:
        """The steps at a batch size that the budget allows; a short last batch is one too."""
        return max(1, self.budget // size)


class Asked(Frozen):
    """What the user said; a target of None is derived from the present setting."""

    target: Annotated[float, Field(allow_inf_nan=False)] | None
    budget: Count
    trials: Annotated[int, Field(ge=3)]
    seed: Seed


@dataclass(frozen=True, slots=True)
class Place:
    """Where a workload is found, by this process and by others."""

    target: str
    data_dir: Path | None = None
    device: str = "cpu"
    seed: int = 0


def sizes_of(workload: Prepared, asked: tuple[int, ...] | None) -> tuple[int, ...]:
    """The batch sizes asked for, sorted, or about the present one; raises `UserError`."""
    count = len(workload.train)
    if asked is None:
        powers = range(-SMALLER, LARGER + 1)
        each = [round(workload.batch_size * FACTOR**power) for power in powers]
        return tuple(sorted({size for size in each if 1 <= size <= count}))
    wrong = [size for size in asked if not 1 <= size <= count]
    if wrong:
        raise UserError(
            f"--batch-sizes: {wrong[0]} is not from 1 to the {count} training samples of "
            f"{workload.name}"
        )
    if len(set(asked)) < 2:
        raise UserError("--batch-sizes: two different ones or more are needed for a curve")
    return tuple(sorted(set(asked)))


def described(workload: Prepared) -> dict[str, Any]:
    """What tells one workload from another in a sweep's folder."""
    metric, better = judged_by(workload)
    return {
        "name": workload.name,
        "train_samples": len(workload.train),
        "validation_samples": len(workload.validation),
        "parameters": workload.parameters,
        "optimizer": describe(workload.given.optimizer),
        "batch_size": workload.batch_size,
        "metric": metric,
        "better": better,
        "target": workload.given.target,
    }
