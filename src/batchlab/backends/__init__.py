"""Where work runs: this process, other processes, other machines."""

from collections.abc import Callable

from batchlab.backends.base import Backend
from batchlab.backends.processes import Processes
from batchlab.backends.serial import Serial

# name: (workers, threads of each) -> backend
BACKENDS: dict[str, Callable[[int, int], Backend]] = {
    "serial": lambda _workers, threads: Serial(threads),
    "processes": Processes,
}
