"""What every backend is: a map of one function over items, results as they come."""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
Report = Callable[[int], None]  # a worker tells of work units done; raises `Interrupted` to stop
Work = Callable[[Item, Report], Result]


class Interrupted(Exception):  # noqa: N818, a wish, not an error
    """The user has asked to stop; what is under way saves itself and ends."""


def cores() -> int:
    """The machine's cores, or fewer where this process may not use them all; Linux alone tells."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def limit_threads(threads: int) -> None:
    """Let PyTorch's arithmetic in this process use so many threads."""
    import torch  # here, so that choosing a backend costs no import of PyTorch

    torch.set_num_threads(threads)


class Backend(Protocol):
    """Runs work somewhere. An exception in the work is raised again where the results are read."""

    def map(
        self,
        work: Work[Item, Result],
        items: Sequence[Item],
        *,
        progress: Callable[[int, int], None],
        stopping: Callable[[], bool],
    ) -> Iterator[tuple[int, Result]]:
        """Yield `(index, work(item, report))` as they end, in any order.

        `progress(index, units)` hears what the work of an item reports. Where `stopping()` turns
        true, work under way is interrupted and `Interrupted` is raised.
        """
