"""Several processes on this machine, each with its own threads."""

import heapq
import multiprocessing
import queue
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from typing import Any

from batchlab.backends.base import Interrupted, Item, Result, Work, limit_threads, waits

POLL_S = 0.1  # between looks at results, progress and the wish to stop

# What a worker process was given at its start; a pool's initializer has no other place for it.
_reports: "Queue[tuple[int, int]]"
_stop: Event


class Processes:
    """A pool of `workers` fresh processes with `threads` threads each."""

    def __init__(self, workers: int, threads: int) -> None:
        self.workers, self.threads = workers, threads

    def map(
        self,
        work: Work[Item, Result],
        items: Sequence[Item],
        *,
        progress: Callable[[int, int], None],
        stopping: Callable[[], bool],
        after: Sequence[int | None] | None = None,
    ) -> Iterator[tuple[int, Result]]:
        """Yield results as they end. `work` and the items must be picklable."""
        waiting = waits(len(items), after)
        if not items:
            return
        # Spawned, not forked: a fork copies PyTorch's thread pools in an unusable state.
        context = multiprocessing.get_context("spawn")
        reports, stop = context.Queue(), context.Event()
        workers = min(self.workers, len(items))
        pool = ProcessPoolExecutor(workers, context, _start, (reports, stop, self.threads))
        ready = [index for index, other in enumerate(waiting) if other is None]  # a heap
        index_of: dict[Future[Any], int] = {}  # what is under way

        def fill() -> None:
            # No more than there are workers: what the pool holds can't be overtaken any more.
            while ready and len(index_of) < workers:
                index = heapq.heappop(ready)
                index_of[pool.submit(_run, work, items[index], index)] = index

        try:
            fill()
            while index_of:
                done, _ = wait(index_of, POLL_S, FIRST_COMPLETED)
                _drain(reports, progress)
                ended = [(index_of.pop(future), future) for future in done]
                for index, future in ended:
                    if future.exception() is None:
                        for other in (i for i, on in enumerate(waiting) if on == index):
                            heapq.heappush(ready, other)
                asked = stopping()
                if not asked:
                    fill()  # before the results are dealt with: no worker waits for that
                for index, future in ended:
                    yield index, future.result()
                if asked:
                    raise Interrupted
            pool.shutdown(wait=True)  # a worker's last reports may come after its last result
            _drain(reports, progress)
        finally:
            stop.set()  # whatever is still under way saves itself and ends
            pool.shutdown(wait=True, cancel_futures=True)
            reports.cancel_join_thread()
            reports.close()


def _start(reports: "Queue[tuple[int, int]]", stop: Event, threads: int) -> None:
    global _reports, _stop
    _reports, _stop = reports, stop
    # Ctrl-C goes to the whole process group; the parent decides, the workers are told to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    limit_threads(threads)


def _end_with_parent() -> None:
    """A worker whose parent was killed would train on for nobody."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        _stop.set()


def _run(work: Work[Item, Result], item: Item, index: int) -> Result:
    def report(units: int) -> None:
        _reports.put((index, units))
        if _stop.is_set():
            raise Interrupted

    return work(item, report)


def _drain(reports: "Queue[tuple[int, int]]", progress: Callable[[int, int], None]) -> None:
    while True:
        try:
            progress(*reports.get_nowait())
        except queue.Empty:
            return
