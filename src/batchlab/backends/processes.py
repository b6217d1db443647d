"""Several processes on this machine, each with its own threads.

Each is at the far end of a pipe of its own and shares no lock, so that any of them may be killed at
any moment, with half of a result sent too, and nobody waits for ever: `docs/decisions/0013`.
"""

import atexit
import multiprocessing
import pickle
import signal
import time
import traceback
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from batchlab.backends.base import Interrupted, Item, Result, Work, always, limit_threads, waits
from batchlab.backends.pool import KILLED, POLL_S, Ended, Heard, run

# Both may go to all processes at once; the parent decides, its workers are told to stop.
_PARENTS = (signal.SIGINT, signal.SIGTERM)


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
            self._started = self._pool(self.workers, work)

    def _pool(self, workers: int, work: Work[Any, Any]) -> "_Processes":
        return _Processes(workers, self.threads, self._method, work)

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
            started or self._pool(workers, work),
            workers,
            work,
            items,
            progress=progress,
            stopping=stopping,
            after=waiting,
            begin=begin,
        )


@dataclass(slots=True)
class _Worker:
    """A process, this end of its pipe, and the item that it has."""

    process: BaseProcess
    pipe: Connection
    index: int | None = None


class _Processes:
    """The pool: another process takes the place of one that is lost."""

    def __init__(self, workers: int, threads: int, method: str, work: Work[Any, Any]) -> None:
        self._context: Any = multiprocessing.get_context(method)
        self._given = threads, work
        self._workers: list[_Worker] = []
        # Where no map comes to it they would wait for a caller that waits for them in the end.
        atexit.register(self.close)
        for _ in range(workers):
            self._workers.append(self._begin())

    def _begin(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        # A fork has copies of all; nobody would see the end of a pipe that it holds open.
        forked = self._context.get_start_method() == "fork"
        copies = [ours, *(worker.pipe for worker in self._workers)] if forked else []
        process = self._context.Process(target=_serve, args=(theirs, copies, *self._given))
        resource_tracker.ensure_running()  # its start would let them through
        # Held back until the worker ignores them: while it imports they would end it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _PARENTS)
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        return _Worker(process, ours)

    def submit(self, work: Work[Item, Any], item: Item, index: int) -> None:
        """Give it to one that has none; where that has died, `ended` says so."""
        worker = next(worker for worker in self._workers if worker.index is None)
        call = pickle.dumps((work, item))
        worker.index = index
        with suppress(OSError):
            worker.pipe.send_bytes(call)

    def ended(self, heard: Heard) -> list[Ended]:
        """What has, of a moment's waiting."""
        busy = [worker for worker in self._workers if worker.index is not None]
        ready = wait([worker.pipe for worker in busy], POLL_S)
        found = []
        for worker in (one for one in busy if one.pipe in ready):
            assert worker.index is not None
            try:
                told = worker.pipe.recv_bytes()
            except (EOFError, OSError):  # the second where it ends in the midst of something
                found.append(Ended(worker.index, lost=self._replace(worker)))
                continue
            units, end = pickle.loads(told)
            if units:
                heard(worker.index, units)
            if end is not None:
                found.append(Ended(worker.index, *end))
                worker.index = None
        return found

    def _replace(self, worker: _Worker) -> str:
        """Begin another; how it was lost."""
        worker.pipe.close()
        worker.process.join()
        self._workers.remove(worker)
        self._workers.append(self._begin())
        return _how(worker.process.exitcode or 0)

    def close(self) -> None:
        """Have whatever is still under way save itself and end."""
        for worker in self._workers:
            worker.pipe.close()
        for worker in self._workers:
            worker.process.join()
        atexit.unregister(self.close)


def _how(status: int) -> str:
    """A process ended, by its exit status or less the signal's number."""
    if status == -signal.SIGKILL:
        return KILLED
    if status < 0:
        return f"by signal {-status}, {signal.strsignal(-status)}"
    return f"exit status {status}: what it said stands above"


def _serve(
    pipe: Connection,
    copies: Sequence[Connection],
    threads: int,
    work: Work[Any, Any],  # noqa: ARG001, a function comes by its module's name, and is imported
) -> None:
    """A worker: do what comes through the pipe, until its other end is closed or has died."""
    for copy in copies:
        copy.close()
    for number in _PARENTS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _PARENTS)
    limit_threads(threads)
    with suppress(EOFError, OSError):
        while True:
            call = pipe.recv_bytes()
            pipe.send_bytes(_answer(call, _Line(pipe)))


def _answer(call: bytes, line: "_Line") -> bytes:
    """Units not told of yet, and the result and no error, or no result and the error, pickled."""
    try:
        work, item = pickle.loads(call)
        result = work(item, line.report)
        return pickle.dumps((line.units, (result, None)))
    except BaseException as error:  # raised again where the results are read
        said = "".join(traceback.format_exception(error))
        error.add_note(f"On a worker:\n{said}")
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # whatever its class makes of that
            error = RuntimeError(said)
        return pickle.dumps((line.units, (None, error)))


class _Line:
    """Reports of a worker to its parent, and the wish to stop."""

    def __init__(self, pipe: Connection) -> None:
        self.units = 0  # not told of yet
        self._pipe, self._told = pipe, time.monotonic()

    def report(self, units: int) -> None:
        """So many more are done; raises `Interrupted` where the parent has closed the pipe."""
        self.units += units
        try:
            if self._pipe.poll():  # while there is work nothing comes but the end
                raise Interrupted
            # Not each: a parent that is busy reads none, and a full pipe would be waited for.
            if time.monotonic() - self._told > POLL_S:
                self._pipe.send_bytes(pickle.dumps((self.units, None)))
                self.units, self._told = 0, time.monotonic()
        except OSError:
            raise Interrupted from None
