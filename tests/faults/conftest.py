"""Processes to be killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest

PATIENCE_S = 120.0
ROOT = Path(__file__).parents[2]


def marked(path: Path) -> list[int]:
    """Processes that were started with this path in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if str(path).encode() in (process / "environ").read_bytes():
                found.append(int(process.name))
    return found


def nothing_left(path: Path) -> None:
    """Wait for the end of all processes that were started with this path in their environment."""
    end = time.monotonic() + PATIENCE_S
    while left := marked(path):
        assert time.monotonic() < end, f"still there: {left}"
        time.sleep(0.05)


@dataclass(frozen=True)
class Process:
    """A process that reproduces the study."""

    number: int
    log: Path

    def alive(self) -> bool:
        try:
            os.kill(self.number, 0)
        except ProcessLookupError:
            return False
        return True

    def wait(self, seconds: float = PATIENCE_S) -> bool:
        """Whether it ended within so many seconds."""
        end = time.monotonic() + seconds
        while self.alive():
            if time.monotonic() > end:
                return False
            time.sleep(0.005)
        return True

    def signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.number, number)

    def workers(self) -> list[int]:
        """Its children that work, and those of Ray's processes that have begun something."""
        found = set()
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
                if (
                    parent == self.number
                    and b"resource_tracker" not in (path / "cmdline").read_bytes()
                ):
                    found.add(int(path.name))
        told = {line["pid"] for line in self.told()} - {self.number}
        known = {number for number in told if Process(number, self.log).alive()}
        return sorted(found - set(marked(self.log)) | known)

    def wait_for_ray(self) -> None:
        """Until nothing is left of the Ray that it has started."""
        nothing_left(self.log)

    def told(self) -> list[dict[str, Any]]:
        """What it and its workers have begun and how it ended."""
        if not self.log.exists():
            return []
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def ended(self) -> str | None:
        """How it ended by itself, if it did."""
        said = [line["ended"] for line in self.told() if "ended" in line]
        return said[-1] if said else None


class Start(Protocol):
    """Begins to reproduce the study on a store, with a backend; with checkpoints elsewhere."""

    def __call__(self, store: Path, backend: str, address: str | None = None) -> Process: ...


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Each process is a fork of one that has imported everything."""
    logs = tmp_path_factory.mktemp("logs")
    one_thread = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}"}
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    # What a Ray that was killed leaves on disk; the paths of its sockets have to be short.
    temporary = tempfile.mkdtemp(prefix="faults")
    zygote = subprocess.Popen(
        [sys.executable, "-m", "tests.faults.zygote"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | one_thread | {"PYTHONPATH": path, "TMPDIR": temporary},
    )
    assert zygote.stdin is not None
    assert zygote.stdout is not None
    count = 0
    begun: list[Process] = []

    def begin(store: Path, backend: str, address: str | None = None) -> Process:
        nonlocal count
        count += 1
        log = logs / f"{count}.jsonl"
        # A test may have another environment than the one that the zygote was started in.
        server = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        asked: dict[str, Any] = {"store": str(store), "backend": backend, "log": str(log)}
        asked |= {"address": address, "environment": server}
        assert zygote.stdin is not None
        assert zygote.stdout is not None
        zygote.stdin.write(json.dumps(asked) + "\n")
        zygote.stdin.flush()
        begun.append(Process(int(zygote.stdout.readline()), log))
        return begun[-1]

    yield begin
    for process in begun:
        process.signal(signal.SIGKILL)
    zygote.stdin.close()
    zygote.stdout.close()
    zygote.wait(PATIENCE_S)
    shutil.rmtree(temporary, ignore_errors=True)


@pytest.fixture(scope="session")
def undisturbed(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in which the study was done in one go."""
    root = tmp_path_factory.mktemp("undisturbed") / "store"
    process = start(root, "serial")
    assert process.wait()
    assert process.ended() == "finished", process.log.with_suffix(".jsonl.err").read_text()
    return root
