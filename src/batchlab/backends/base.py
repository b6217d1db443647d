"""What every backend is: a map of one function over items, results as they come."""

import os
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from batchlab.spec import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")
Report = Callable[[int], None]  # a worker tells of work units done; raises `Interrupted` to stop
Work = Callable[[Item, Report], Result]


class Interrupted(Exception):  # noqa: N818, a wish, not an error
    """The user has asked to stop; what is under way saves itself and ends."""


class WorkerLostError(UserError):
    """Workers were lost at one item again and again, so that it is no chance any more."""

    def __init__(self, times: int, how: str) -> None:
        super().__init__(
            f"a worker process was lost {times} times at one job ({how}); what is finished is "
            "kept, the same command goes on from there"
        )


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked of a backend, whichever it is; `None`: what its machines have."""

    workers: int | None = None  # items at once
    threads: int | None = None  # of each worker's arithmetic
    device: str = "cpu"
    # Of Ray alone:
    address: str | None = None  # of a cluster; None: this machine
    gpus_per_job: float | None = None  # a part of one; None: the whole
    memory_per_job: int | None = None  # MiB

    def here(self) -> tuple[int, int]:
        """Workers and the threads of each on this machine: together its cores.

        A GPU has one worker, which has runs go side by side itself.
        """
        fit = 1 if self.device == "cuda" else max(1, cores() // (self.threads or 1))
        workers = self.workers or fit
        return workers, self.threads or max(1, cores() // workers)

    def check(self, backend: str) -> None:
        """Raises `UserError` where that backend can't have what is wanted."""
        if backend == "serial" and self.workers is not None and self.workers > 1:
            raise UserError(
                f"--workers {self.workers}: --backend serial has one; give --backend processes or "
                "ray"
            )
        if backend != "ray":
            for name in ("address", "gpus_per_job", "memory_per_job"):
                if getattr(self, name) is not None:
                    raise UserError(f"--{name.replace('_', '-')}: is for --backend ray")
        if self.address is not None and "://" in self.address:
            raise UserError(
                f"--address {self.address}: must be HOST:PORT of the cluster's head, or auto, on "
                "one of its nodes"
            )
        if self.gpus_per_job is not None and self.device != "cuda":
            raise UserError("--gpus-per-job: needs --device cuda")
        if self.gpus_per_job is not None and not 0 < self.gpus_per_job <= 1:
            raise UserError(f"--gpus-per-job {self.gpus_per_job}: must be above 0 and at most 1")


def always(_: int) -> bool:
    """A `begin` that lets every item be begun."""
    return True


def cores() -> int:
    """The machine's cores, or fewer where this process may not use them all; Linux alone tells."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def limit_threads(threads: int) -> None:
    """Let PyTorch's arithmetic in this process use so many threads."""
    import torch  # here, so that choosing a backend costs no import of PyTorch

    torch.set_num_threads(threads)


def waits(count: int, after: Sequence[int | None] | None) -> list[int | None]:
    """Which item each of `count` waits for; `ValueError` where one would wait for a later one."""
    known: list[int | None] = [None] * count if after is None else list(after)
    if len(known) != count:
        raise ValueError(f"{len(known)} waits for {count} items")
    for index, other in enumerate(known):
        if other is not None and not 0 <= other < index:
            raise ValueError(f"item {index} can't wait for item {other}")
    return known


class Backend(Protocol):
    """Runs work somewhere. An exception in the work is raised again where the results are read.

    An item whose worker dies is begun again, and goes on from its last checkpoint if it has any;
    `WorkerLostError` where that happens too often.
    """

    workers: int  # items at once
    threads: int  # of each worker's arithmetic

    def start(self, work: Work[Any, Any]) -> None:
        """Have workers begin to start and to import this work; not waited for.

        The next map goes on with them. Without it `map` has them begin.
        """

    def map(
        self,
        work: Work[Item, Result],
        items: Sequence[Item],
        *,
        progress: Callable[[int, int], None],
        stopping: Callable[[], bool],
        after: Sequence[int | None] | None = None,
        begin: Callable[[int], bool] = always,
    ) -> Generator[tuple[int, Result], None, None]:
        """Yield `(index, work(item, report))` as they end, in any order.

        Items are begun in their order, except that one waits until the item with the index that
        `after` gives for it has ended: always one that stands before it (`ValueError` otherwise).
        `begin(index)` is asked once, in this process, right before an item would be begun; where it
        is false the item and all that wait for it are left out: nothing is yielded of them.
        `progress(index, units)` hears what the work of an item reports, in as many parts or fewer;
        what a worker that died has done may be heard of again. Where `stopping()` turns
        true, work under way is interrupted and `Interrupted` is raised. So it is where the
        generator is closed, which a caller who leaves it early has to do.
        """
