"""What runs in Ray's processes: a job, and an ear for what jobs report."""

import pickle
import platform
import time
from importlib import metadata
from typing import Any

import ray
from ray.exceptions import RayError

from batchlab.backends.base import Interrupted, limit_threads

TELL_S = 0.25  # between reports of a job

# `versions`, `enter` and `Ear` are pickled by value and name nothing of batchlab, so that a process
# that has another one, or none, can say so.


def versions() -> dict[str, str | None]:
    """Of what decides the numbers, in this process; `None` where it isn't installed."""
    found: dict[str, str | None] = {}
    for name in ("batchlab", "torch"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def enter(
    needed: dict[str, str | None], ear: Any, attempt: int, threads: int, call: bytes
) -> tuple[str, dict[str, str | None], int, Any]:
    """A task: this node, its versions, and where these are as `needed` the units and result."""
    found = versions()
    if found != needed:
        return platform.node(), found, 0, None
    from batchlab.backends.ray_worker import work

    units, result = work(ear, attempt, threads, call)
    return platform.node(), found, units, result


class Ear:
    """An actor that hears of all jobs how far they are, and tells them whether to stop.

    A job tells the sum of its units, so that a report that is lost is made up for by the next.
    """

    def __init__(self) -> None:
        self._units: dict[int, int] = {}
        self._stop = False

    def hear(self, attempt: int, units: int) -> bool:
        """From a job: so many units are done. Whether it should stop."""
        self._units[attempt] = units
        return self._stop

    def tell(self, stop: bool) -> dict[int, int]:
        """To the command, which says whether jobs should stop: what is new, by attempt."""
        self._stop = stop
        units, self._units = self._units, {}
        return units


def work(ear: Any, attempt: int, threads: int, call: bytes) -> tuple[int, Any]:
    """Do a pickled job; its units and its result."""
    limit_threads(threads)
    line = Line(ear, attempt)
    function, item = pickle.loads(call)
    result = function(item, line.report)
    return line.units, result


class Line:
    """From a job to the ear, and back; never waited for."""

    def __init__(self, ear: Any, attempt: int) -> None:
        self.units = 0
        self._ear, self._attempt = ear, attempt
        self._tell()  # that it has begun

    def _tell(self) -> None:
        self._told = time.monotonic()
        self._answer: Any = self._ear.hear.remote(self._attempt, self.units)

    def report(self, units: int) -> None:
        """So many more are done; raises `Interrupted` where the ear has said so."""
        self.units += units
        if time.monotonic() - self._told < TELL_S or not ray.wait([self._answer], timeout=0)[0]:
            return
        try:
            stop = ray.get(self._answer)
        except RayError:  # the ear's process died, and another takes its place
            stop = False
        if stop:
            raise Interrupted
        self._tell()
