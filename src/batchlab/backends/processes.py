"""Several processes on this machine, each with its own threads."""

import heapq
import multiprocessing
import os
import queue
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from typing import Any

from batchlab.backends.base import (
    Interrupted,
    Item,
    Result,
    Work,
    WorkerLostError,
    always,
    limit_threads,
    waits,
)

POLL_S = 0.1  # between looks at results, progress and the wish to stop
LOSSES = 3  # workers killed at one item: more than an accident

# What a worker process was given at its start; a pool's initializer has no other place for it.
_reports: "Queue[tuple[int, int]]"
_stop: Event
_working = threading.Lock()


class Processes:
    """A pool of `workers` fresh processes with `threads` threads each.

    Spawned, not forked: a fork copies PyTorch's thread pools in an unusable state. A caller that
    has never used any may say `fork`.
    """

    def __init__(self, workers: int, threads: int, method: str = "spawn") -> None:
        self.workers, self.threads, self._method = workers, threads, method

    def map(
        self,
        work: Work[Item, Result],
        items: Sequence[Item],
        *,
        progress: Callable[[int, int], None],
        stopping: Callable[[], bool],
        after: Sequence[int | None] | None = None,
        begin: Callable[[int], bool] = always,
    ) -> Iterator[tuple[int, Result]]:
        """Yield results as they end. `work` and the items must be picklable."""
        waiting = waits(len(items), after)
        if not items:
            return
        workers = min(self.workers, len(items))
        pool = _Pool(workers, self.threads, self._method)
        ready = [index for index, other in enumerate(waiting) if other is None]  # a heap
        index_of: dict[Future[Any], int] = {}  # what is under way
        begun: set[int] = set()
        losses: Counter[int] = Counter()

        def fill() -> None:
            # No more than there are workers: what the pool holds can't be overtaken any more.
            while ready and len(index_of) < workers:
                index = heapq.heappop(ready)
                if index in begun or begin(index):
                    begun.add(index)
                    index_of[pool.submit(work, items[index], index)] = index

        def renew(lost: Sequence[int]) -> None:
            """Another pool in place of one that has lost a worker, and with it all of them."""
            nonlocal pool
            losses.update(lost)
            for index in lost:
                if losses[index] == LOSSES:
                    raise WorkerLostError(index, LOSSES)
                heapq.heappush(ready, index)
            pool.close()
            pool = _Pool(workers, self.threads, self._method)

        try:
            fill()
            while index_of:
                done, _ = wait(index_of, POLL_S, FIRST_COMPLETED)
                pool.drain(progress)
                ended = [(index_of.pop(future), future) for future in done]
                lost = [i for i, f in ended if isinstance(f.exception(), BrokenProcessPool)]
                if lost:
                    wait(index_of)  # all of a broken pool's futures end
                    ended += [(index_of.pop(future), future) for future in list(index_of)]
                    lost = [i for i, f in ended if isinstance(f.exception(), BrokenProcessPool)]
                    renew(lost)
                    ended = [(i, future) for i, future in ended if i not in lost]
                for index, future in ended:
                    if future.exception() is None:
                        for other in (i for i, on in enumerate(waiting) if on == index):
                            heapq.heappush(ready, other)
                asked = stopping()
                if not asked:
                    fill()  # before the results are dealt with: no worker waits for that
                done.clear()  # a result is held no longer than it is dealt with
                while ended:
                    index, future = ended.pop(0)
                    yield index, future.result()
                    del future
                if asked:
                    raise Interrupted
            pool.shutdown()  # a worker's last reports may come after its last result
            pool.drain(progress)
        finally:
            pool.close()


class _Pool:
    """Worker processes, what they report through, and how they are told to stop."""

    def __init__(self, workers: int, threads: int, method: str) -> None:
        context = multiprocessing.get_context(method)
        self._reports, self._stop = context.Queue(), context.Event()
        given = (self._reports, self._stop, threads)
        self._executor = ProcessPoolExecutor(workers, context, _start, given)

    def submit(self, work: Work[Item, Result], item: Item, index: int) -> Future[Any]:
        """A future; where the pool is broken already, one that says so."""
        try:
            return self._executor.submit(_run, work, item, index)
        except BrokenProcessPool as error:
            broken: Future[Any] = Future()
            broken.set_exception(error)
            return broken

    def drain(self, progress: Callable[[int, int], None]) -> None:
        """Pass on what has been reported."""
        while True:
            try:
                progress(*self._reports.get_nowait())
            except queue.Empty:
                return

    def shutdown(self) -> None:
        """Let the workers end."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    def close(self) -> None:
        """Have whatever is still under way save itself and end."""
        self._stop.set()
        self.shutdown()
        self._reports.cancel_join_thread()
        self._reports.close()


def _start(reports: "Queue[tuple[int, int]]", stop: Event, threads: int) -> None:
    global _reports, _stop
    _reports, _stop = reports, stop
    # Ctrl-C goes to the whole process group; the parent decides, the workers are told to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A pool that has lost a worker ends the others so; a fork would have the parent's handler.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    limit_threads(threads)


def _end_with_parent() -> None:
    """A worker whose parent was killed would train on for nobody, or wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        _stop.set()
        with _working:  # what is under way saves itself first
            os._exit(1)


def _run(work: Work[Item, Result], item: Item, index: int) -> Result:
    def report(units: int) -> None:
        _reports.put((index, units))
        if _stop.is_set():
            raise Interrupted

    with _working:
        return work(item, report)
