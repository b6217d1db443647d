"""A Ray to work on: one started on this machine, or a cluster that is there."""

import fcntl
import logging
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from math import floor
from pathlib import Path
from typing import Any

import ray

from batchlab.spec import UserError

STORE_BYTES = 128 * 2**20  # of a Ray started here, for jobs and results: some MB each
PREFIX = "batchlab-ray-"
ANSWER_S = 10.0
YOUNG_S = 60.0  # a directory may not be locked yet
LONGEST = 20  # characters of a directory's name: Ray's sockets in it may have 103
# Ray has its workers give way to all else on a machine: beside other work they would stand still.
SYSTEM = {"worker_niceness": 0}
Needs = dict[str, float]  # of a job: resources as Ray calls them


@contextmanager
def connected(address: str | None, cpus: int, gpus: int | None = None) -> Iterator[None]:
    """Have Ray at hand: the cluster at `address`, or one here for so many CPUs, gone afterwards.

    Its GPUs are those that there are, unless their number is given. A connection that this process
    has already is used and left as it is. Raises `UserError` where there is no cluster, or none can
    be started.
    """
    if ray.is_initialized():
        yield
        return
    handlers = _handlers()
    with _directory() as temporary:
        try:
            try:
                _connect(address, cpus, gpus, temporary)
            except Exception as error:  # of many kinds, and no list of them is promised
                raise UserError(_no_cluster(address, error)) from error
            finally:
                # Ray takes SIGTERM for itself; who asks to stop is heard as on other backends.
                for number, handler in handlers.items():
                    signal.signal(number, handler)
            with _quiet():
                yield
        finally:
            ray.shutdown()


def _connect(address: str | None, cpus: int, gpus: int | None, temporary: str) -> None:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # As later versions do: it only says that a task without a GPU sees those that there are.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    said: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if address is None:
        ray.init(
            "local",  # never a cluster that happens to be there
            num_cpus=cpus,
            num_gpus=gpus,
            object_store_memory=STORE_BYTES,
            include_dashboard=False,
            _system_config=SYSTEM,
            _temp_dir=temporary,
            **said,
        )
    else:
        host, _, port = address.rpartition(":")
        if host:  # Ray would try for minutes
            socket.create_connection((host, int(port)), ANSWER_S).close()
        ray.init(address, **said)


def _no_cluster(address: str | None, error: Exception) -> str:
    why = " ".join(str(error).split())
    if address is None:
        return f"--backend ray: Ray can't be started here ({why}); use processes"
    return (
        f"--address {address}: no cluster ({why}); must be HOST:PORT of its head, or auto, "
        "with RAY_AUTH_MODE as there"
    )


def _handlers() -> dict[int, Any]:
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}


@contextmanager
def _directory() -> Iterator[str]:
    """For a Ray started here: its own, where others' can't be in the way.

    Those of commands that were killed are removed: a lock ends with its process, however that ends.
    """
    place = Path(tempfile.gettempdir())
    if len(str(place)) > LONGEST:
        place = Path("/tmp")
    for other in place.glob(f"{PREFIX}*"):
        if _left(other):
            shutil.rmtree(other, ignore_errors=True)
    made = tempfile.mkdtemp(prefix=PREFIX, dir=place)
    lock = os.open(made, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield made
    finally:
        os.close(lock)
        shutil.rmtree(made, ignore_errors=True)


def _left(other: Path) -> bool:
    """Whether no process has it any more, nor is just about to."""
    try:
        lock = os.open(other, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return time.time() - os.fstat(lock).st_mtime > YOUNG_S
    except OSError:
        return False
    finally:
        os.close(lock)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what Ray tells of workers' deaths, which are dealt with, off standard output.

    It has no setting for that: `log_to_driver` is about what workers print.
    """
    worker, name = ray._private.worker, "print_to_stdstream"
    said = getattr(worker, name, None)
    setattr(worker, name, lambda *_, **__: None)
    try:
        yield
    finally:
        setattr(worker, name, said)


def room(needs: Needs) -> int:
    """How many jobs the nodes that are up could have at once, were there no other work."""
    return sum(
        min(floor(node["Resources"].get(name, 0) / amount + 1e-9) for name, amount in needs.items())
        for node in ray.nodes()
        if node["Alive"]
    )


def no_room(needs: Needs) -> UserError:
    """That no node that is up could have a job at all."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return UserError(
        f"--backend ray: a job needs {_told(needs)}, and no node has that "
        f"(they have {'; '.join(_told(node) for node in nodes) or 'gone'}); "
        "ask for less by --threads, --gpus-per-job or --memory-per-job, or add a node"
    )


def _told(resources: Needs) -> str:
    parts = [f"{resources[name]:g} {name}" for name in ("CPU", "GPU") if resources.get(name)]
    if resources.get("memory"):
        parts.append(f"{resources['memory'] / 2**20:.0f} MiB")
    return ", ".join(parts) or "nothing"
