"""Ray: jobs as its tasks, on this machine or on the nodes of a cluster.

Where a job runs, and that nothing of a command that was killed goes on, is Ray's affair. That a job
whose worker died is begun again is not left to it: losses are counted as on every backend.
"""

import time
from collections.abc import Callable, Generator, Sequence
from itertools import count
from typing import Any

import ray
from ray import cloudpickle
from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from batchlab.backends import ray_worker
from batchlab.backends.base import Item, Result, Wanted, Work, always, cores, waits
from batchlab.backends.pool import KILLED, POLL_S, Ended, Heard, run
from batchlab.backends.ray_cluster import Needs, connected, no_room, room
from batchlab.backends.ray_worker import versions
from batchlab.spec import UserError

LOST = (WorkerCrashedError, NodeDiedError, ObjectLostError, OutOfMemoryError)
ROOMLESS_S = 300.0  # without a node that a job fits on, when there was one: it may be replaced
LOOK_S = 5.0  # between looks whether there is one
MIB = 2**20


class Ray:
    """As many jobs at once as were asked for, or as there are CPUs, GPUs and memory for.

    It and its `map` raise `UserError` where `address` is no cluster's, or no node can have a job.
    """

    def __init__(self, wanted: Wanted) -> None:
        self._address = wanted.address
        workers, self.threads = wanted.here()
        if wanted.address is not None:
            self.threads = wanted.threads or 1
        self._needs: Needs = {"CPU": self.threads}
        if wanted.device == "cuda":
            self._needs["GPU"] = wanted.gpus_per_job or 1.0
        if wanted.memory_per_job:
            self._needs["memory"] = float(wanted.memory_per_job * MIB)
        # Ray alone knows what a cluster has, and of this machine more than its cores.
        if wanted.workers is None and (wanted.address is not None or len(self._needs) > 1):
            with connected(wanted.address, cores()):
                workers = room(self._needs)
                if not workers:
                    raise no_room(self._needs)
        self.workers = workers

    def start(self, work: Work[Any, Any]) -> None:
        """Ray has its own workers start."""

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
        """Yield results as they end. `work` and the items are pickled, as are the results."""
        waiting = waits(len(items), after)
        if not items:
            return
        workers = min(self.workers, len(items))
        with connected(self._address, workers * self.threads):
            if not room(self._needs):
                raise no_room(self._needs)
            yield from run(
                _Tasks(self._needs),
                workers,
                work,
                items,
                progress=progress,
                stopping=stopping,
                after=waiting,
                begin=begin,
            )


class _Tasks:
    """The pool: Ray's own, of whatever processes it has on the nodes."""

    def __init__(self, needs: Needs) -> None:
        self._needs, self._versions = needs, versions()
        cloudpickle.register_pickle_by_value(ray_worker)
        self._enter = ray.remote(
            num_cpus=needs["CPU"],
            num_gpus=needs.get("GPU"),
            memory=needs.get("memory"),
            max_retries=0,
        )(ray_worker.enter)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        # On this command's node, whose loss would be the end anyway; another where it dies alone.
        self._ear = (
            ray.remote(num_cpus=0, max_restarts=-1, scheduling_strategy=here)(ray_worker.Ear)
        ).remote()
        self._news: Any = None  # what the ear was asked for
        self._attempts = count()
        self._under_way: dict[Any, tuple[int, int]] = {}  # a task's attempt and item
        self._units: dict[int, int] = {}  # that an attempt was heard to have done
        self._stop = False
        self._roomy = self._looked = time.monotonic()  # when there was room for a job

    def submit(self, work: Work[Item, Any], item: Item, index: int) -> None:
        """Begin it where there is room."""
        attempt = next(self._attempts)
        call = cloudpickle.dumps((work, item))
        threads = int(self._needs["CPU"])
        task = self._enter.remote(self._versions, self._ear, attempt, threads, call)
        self._under_way[task] = attempt, index

    def ended(self, heard: Heard) -> list[Ended]:
        """What has, of a moment's waiting."""
        done = self._wait()
        self._listen(heard)
        self._look_for_room()
        return [self._ended(task, heard) for task in done]

    def _wait(self) -> list[Any]:
        tasks = list(self._under_way)
        ray.wait(tasks, timeout=POLL_S)
        done: list[Any] = ray.wait(tasks, num_returns=len(tasks), timeout=0)[0]
        return done

    def _listen(self, heard: Heard) -> None:
        """Ask the ear, and go by its last answer; whatever it forgets is in the next report."""
        if self._news is None:
            self._news = self._ear.tell.remote(self._stop)
        if not ray.wait([self._news], timeout=0)[0]:
            return
        try:
            told = ray.get(self._news)
        except RayError:
            told = {}
        self._news = None
        indices = dict(self._under_way.values())
        for attempt, units in told.items():
            if attempt in indices:
                self._pass_on(attempt, indices[attempt], units, heard)

    def _pass_on(self, attempt: int, index: int, units: int, heard: Heard) -> None:
        more = units - self._units.get(attempt, 0)
        self._units[attempt] = units
        if more:
            heard(index, more)

    def _ended(self, task: Any, heard: Heard) -> Ended:
        attempt, index = self._under_way.pop(task)
        try:
            node, found, units, result = ray.get(task)
        except LOST as error:
            return Ended(index, error=error, lost=KILLED)
        except RayTaskError as error:
            error.cause.__cause__ = error  # for its traceback on the worker
            return Ended(index, error=error.cause)
        if found != self._versions:
            return Ended(index, error=_another(node, found, self._versions))
        self._pass_on(attempt, index, units, heard)
        del self._units[attempt]
        return Ended(index, result)

    def _look_for_room(self) -> None:
        """`UserError` where no node has had room for a job for long: none would ever begin."""
        now = time.monotonic()
        if now - self._looked < LOOK_S:
            return
        self._looked = now
        if room(self._needs):
            self._roomy = now
        elif now - self._roomy > ROOMLESS_S:
            raise no_room(self._needs)

    def close(self) -> None:
        """Have what is under way save itself and end, wherever it is."""
        self._stop = True
        for task, (attempt, _) in self._under_way.items():
            if attempt not in self._units:
                ray.cancel(task)  # it has not begun, and may wait for room
        while self._under_way:
            for task in self._wait():
                del self._under_way[task]
            self._listen(lambda *_: None)
        ray.kill(self._ear)
        cloudpickle.unregister_pickle_by_value(ray_worker)


def _another(node: str, theirs: dict[str, str | None], ours: dict[str, str | None]) -> UserError:
    other = ", ".join(f"{name} {theirs[name] or 'not'}" for name in ours)
    return UserError(
        f"--backend ray: node {node} has {other}; must be "
        + ", ".join(f"{name} {version}" for name, version in ours.items())
        + ", as where the command runs"
    )
