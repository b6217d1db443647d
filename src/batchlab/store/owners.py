"""Which processes are at work on a store, and which of them are dead.

Each has a file of its own in `owners/`, which it holds locked and touches every few seconds. The
system lets go of the lock however the process ends, `kill -9` included, so on one host a dead owner
is known at once; one on another host is dead when its file has not been touched for `EXPIRED_S`, by
the file system's own clock.
"""

import fcntl
import os
import socket
import threading
import uuid
from contextlib import suppress
from pathlib import Path

from batchlab.spec import UserError
from batchlab.store.files import within

DIRECTORY = "owners"
BEAT_S = 5.0  # between heartbeats
EXPIRED_S = 60.0  # without one


class Owner:
    """This process's sign of life, until it is closed. Raises `UserError` where it can't be given.

    A process that was suspended for so long that others took it for dead is alive again with its
    next heartbeat, but its claims are gone.
    """

    def __init__(self, root: Path) -> None:
        self._directory = within(root, DIRECTORY)
        self.name, self.host = uuid.uuid4().hex, socket.gethostname()
        try:
            self._directory.mkdir(exist_ok=True)
            self._file = self._sign()
        except OSError as error:
            raise UserError(f"store {root}: not writable ({error.strerror})") from None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Take the sign back."""
        self._closing.set()
        self._thread.join()
        self._path(self.name).unlink(missing_ok=True)
        os.close(self._file)

    def dead(self, name: str, host: str) -> bool:
        """Whether another owner is gone for certain, or has been silent for too long."""
        path = self._path(name)
        try:
            silent = self._now() - path.stat().st_mtime
            return silent > EXPIRED_S or (host == self.host and not held(path))
        except FileNotFoundError:
            return True

    def bury(self, name: str) -> None:
        """Remove a dead owner's file."""
        self._path(name).unlink(missing_ok=True)

    def _now(self) -> float:
        """By the file system's clock."""
        os.utime(self._file)
        return os.fstat(self._file).st_mtime

    def _path(self, name: str) -> Path:
        if len(name) != 32 or not name.isalnum():  # from the store, and so not to be trusted
            raise ValueError(f"{name!r} is not an owner's name")
        return self._directory / name

    def _sign(self) -> int:
        # Not inherited by other programs, workers included: they must not keep the lock alive.
        file = os.open(self._path(self.name), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        with suppress(OSError):  # a file system without locks: its heartbeat has to do
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return file

    def _beat(self) -> None:
        while not self._closing.wait(BEAT_S):
            with suppress(OSError):  # what fails once may succeed at the next beat
                os.utime(self._file)
                if not self._path(self.name).exists():
                    file, self._file = self._file, self._sign()
                    os.close(file)


def held(path: Path) -> bool:
    """Whether a process of this host holds the lock; `FileNotFoundError` where there is no file."""
    file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(file)
    return False


def living(root: Path) -> list[Path]:
    """The files of owners that hold their locks."""
    alive = []
    for path in sorted(within(root, DIRECTORY).glob("*")):
        with suppress(FileNotFoundError):
            if held(path):
                alive.append(path)
    return alive
