"""One item after the other, in this process."""

from collections.abc import Callable, Generator, Sequence
from typing import Any

from batchlab.backends.base import Interrupted, Item, Result, Work, always, limit_threads, waits


class Serial:
    """Everything here and now, with so many threads for the arithmetic."""

    def __init__(self, threads: int) -> None:
        self.workers, self.threads = 1, threads

    def start(self, work: Work[Any, Any]) -> None:
        """There is nothing to wait for."""

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
        """Yield results in the items' order: what an item waits for stands before it."""
        waiting = waits(len(items), after)
        limit_threads(self.threads)
        left_out: set[int | None] = set()
        for index, item in enumerate(items):
            if waiting[index] in left_out or not begin(index):
                left_out.add(index)
                continue

            def report(units: int, index: int = index) -> None:
                progress(index, units)
                if stopping():
                    raise Interrupted

            yield index, work(item, report)
