"""Several processes on this machine, each with its own threads."""

import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable, Generator, Sequence
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
    always,
    limit_threads,
    waits,
)
from batchlab.backends.pool import POLL_S, Ended, Heard, run

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
        self._started: _Processes | None = None

    def start(self, work: Work[Any, Any]) -> None:
        """Have the processes of the next map start."""
        if self._started is None:
            self._started = _Processes(self.workers, self.threads, self._method)
            self._started.warm(work)

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
        """Yield results as they end. `work` and the items must be picklable."""
        waiting = waits(len(items), after)
        if not items:
            return
        workers = min(self.workers, len(items))
        started, self._started = self._started, None
        yield from run(
            started or _Processes(workers, self.threads, self._method),
            workers,
            work,
            items,
            progress=progress,
            stopping=stopping,
            after=waiting,
            begin=begin,
        )


class _Processes:
    """The pool: one that has lost a process ends the others too, and another takes its place."""

    def __init__(self, workers: int, threads: int, method: str) -> None:
        self._workers, self._threads = workers, threads
        self._context = multiprocessing.get_context(method)
        self._index_of: dict[Future[Any], int] = {}  # what is under way
        self._start()

    def _start(self) -> None:
        # A process may have died with a lock of these: each executor has its own.
        self._reports, self._stop = self._context.Queue(), self._context.Event()
        given = (self._reports, self._stop, self._threads)
        self._executor = ProcessPoolExecutor(self._workers, self._context, _start, given)

    def warm(self, work: Work[Any, Any]) -> None:
        """Have every process start and import the work."""
        for _ in range(self._workers):
            self._executor.submit(_imported, work)

    def submit(self, work: Work[Item, Any], item: Item, index: int) -> None:
        """Begin it; where the pool is broken already, `ended` says so."""
        try:
            future = self._executor.submit(_run, work, item, index)
        except BrokenProcessPool as error:
            future = Future()
            future.set_exception(error)
        self._index_of[future] = index

    def ended(self, heard: Heard) -> list[Ended]:
        """All that were under way, where a process was lost."""
        done, _ = wait(self._index_of, POLL_S, FIRST_COMPLETED)
        broken = any(isinstance(future.exception(), BrokenProcessPool) for future in done)
        if broken:
            done, _ = wait(self._index_of)  # all of a broken pool's futures end
        self._drain(heard)
        if broken:
            self.close()
            self._start()
        return [_ended(self._index_of.pop(future), future) for future in done]

    def _drain(self, heard: Heard) -> None:
        while True:
            try:
                heard(*self._reports.get_nowait())
            except queue.Empty:
                return

    def finish(self, heard: Heard) -> None:
        """A worker's last reports may come after its last result: let all end first."""
        self._shutdown()
        self._drain(heard)

    def _shutdown(self) -> None:
        self._executor.shutdown(wait=True, cancel_futures=True)

    def close(self) -> None:
        """Have whatever is still under way save itself and end."""
        self._stop.set()
        self._shutdown()
        self._reports.cancel_join_thread()
        self._reports.close()


def _ended(index: int, future: Future[Any]) -> Ended:
    error = future.exception()
    if error is None:
        return Ended(index, future.result())
    return Ended(index, error=error, lost=isinstance(error, BrokenProcessPool))


def _start(reports: "Queue[tuple[int, int]]", stop: Event, threads: int) -> None:
    global _reports, _stop
    _reports, _stop = reports, stop
    # Ctrl-C goes to the whole process group; the parent decides, the workers are told to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A pool that has lost a worker ends the others so; a fork would have the parent's handler.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    limit_threads(threads)


def _imported(work: Work[Any, Any]) -> None:
    """A function comes by its module's name, and is imported."""


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
