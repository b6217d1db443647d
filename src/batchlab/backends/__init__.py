"""Where work runs: this process, other processes, other machines."""

from collections.abc import Callable

from batchlab.backends.base import Backend, Wanted, cores
from batchlab.backends.processes import Processes
from batchlab.backends.serial import Serial
from batchlab.spec import UserError, one_of


def _ray(wanted: Wanted) -> Backend:
    try:
        from batchlab.backends.ray import Ray
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise UserError("--backend ray: needs Ray; pip install 'batchlab[ray]'") from None
    return Ray(wanted)


BACKENDS: dict[str, Callable[[Wanted], Backend]] = {
    "serial": lambda wanted: Serial(wanted.threads or cores()),
    "processes": lambda wanted: Processes(*wanted.here()),
    "ray": _ray,
}


def check_backend(name: str, wanted: Wanted) -> None:
    """Raises `UserError` where there is no such backend, or it can't have what is wanted of it."""
    one_of("--backend", name, list(BACKENDS))
    wanted.check(name)
