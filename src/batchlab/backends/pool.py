"""What backends of several workers share: which item is next, and what if its worker dies."""

import heapq
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from batchlab.backends.base import Interrupted, Item, Result, Work, WorkerLostError

POLL_S = 0.1  # between looks at results, progress and the wish to stop
LOSSES = 3  # workers lost at one item: more than an accident
KILLED = "killed: out of memory? then give fewer --workers"

Heard = Callable[[int, int], None]  # units done of the item with this index


@dataclass(slots=True)
class Ended:
    """How the work of an item ended: by its result, by its exception, or by its worker's death."""

    index: int
    result: Any = None
    error: BaseException | None = None
    lost: str = ""  # how its worker was


class Pool(Protocol):
    """Workers, what they report through, and how they are told to stop."""

    def submit(self, work: Work[Item, Any], item: Item, index: int) -> None:
        """Begin the work of an item, of which there are never more than workers."""

    def ended(self, heard: Heard) -> list[Ended]:
        """What has ended by now, waited for a moment; `heard` gets its reports, and others' so far.

        Where workers were lost there are others in their place.
        """

    def close(self) -> None:
        """Have whatever is still under way save itself and end; no worker is left."""


def run(
    pool: Pool,
    workers: int,
    work: Work[Item, Result],
    items: Sequence[Item],
    *,
    progress: Heard,
    stopping: Callable[[], bool],
    after: Sequence[int | None],
    begin: Callable[[int], bool],
) -> Generator[tuple[int, Result], None, None]:
    """What `Backend.map` promises, by a pool of so many workers, which is closed in the end.

    `after` has one entry an item, as `base.waits` gives it.
    """
    order = _Order(after, begin)
    under_way = 0

    def fill() -> None:
        # No more than there are workers: what the pool holds can't be overtaken any more.
        nonlocal under_way
        while under_way < workers and (index := order.next()) is not None:
            pool.submit(work, items[index], index)
            under_way += 1

    try:
        fill()
        while under_way:
            ended = pool.ended(progress)
            under_way -= len(ended)
            for one in ended:
                order.note(one)
            ended = [one for one in ended if not one.lost]
            asked = stopping()
            if not asked:
                fill()  # before the results are dealt with: no worker waits for that
            while ended:
                one = ended.pop(0)
                if one.error is not None:
                    raise one.error
                yield one.index, one.result
                del one  # a result is held no longer than it is dealt with
            if asked:
                raise Interrupted
    finally:
        pool.close()


class _Order:
    """Which item is to be begun next, and how often each has lost its worker."""

    def __init__(self, waiting: Sequence[int | None], begin: Callable[[int], bool]) -> None:
        self._waiting, self._begin = waiting, begin
        self._ready = [index for index, other in enumerate(waiting) if other is None]  # a heap
        self._begun: set[int] = set()
        self._losses: Counter[int] = Counter()

    def next(self) -> int | None:
        """The first of those that wait for nothing; none that `begin` refuses."""
        while self._ready:
            index = heapq.heappop(self._ready)
            if index in self._begun or self._begin(index):
                self._begun.add(index)
                return index
        return None

    def note(self, one: Ended) -> None:
        """Let those begin that waited for it, or itself again; `WorkerLostError` at some point."""
        if one.lost:
            self._losses[one.index] += 1
            if self._losses[one.index] == LOSSES:
                raise WorkerLostError(LOSSES, one.lost)
            heapq.heappush(self._ready, one.index)
        elif one.error is None:
            for other in (i for i, on in enumerate(self._waiting) if on == one.index):
                heapq.heappush(self._ready, other)
