"""Two processes on one store: every run is trained once, and a dead one's work is taken over."""

import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from batchlab.store.check import check
from batchlab.store.owners import EXPIRED_S
from tests.faults.conftest import Process, Start
from tests.faults.study import content


def trained(*processes: Process) -> Counter[str]:
    """How often each piece was begun that had steps to take."""
    lines = [line for process in processes for line in process.told()]
    return Counter(line["began"] for line in lines if line.get("steps"))


@pytest.mark.parametrize("backends", [("serial", "serial"), ("serial", "processes")])
def test_both_at_once(
    start: Start, undisturbed: Path, tmp_path: Path, backends: tuple[str, str]
) -> None:
    expected = content(undisturbed)
    root = tmp_path / "store"
    both = [start(root, backend) for backend in backends]
    for process in both:
        assert process.wait()
        assert process.ended() == "finished"
    counts = trained(*both)
    assert set(counts.values()) == {1}
    assert all(trained(process) for process in both), "one of them did all the work"
    ended = [line for process in both for line in process.told() if "ended" in line]
    assert sum(line["trained"] for line in ended) == len(expected["run"])
    assert content(root) == expected
    assert check(root) == []


def test_the_other_takes_over_at_once(start: Start, undisturbed: Path, tmp_path: Path) -> None:
    root = tmp_path / "store"
    both = [start(root, "serial") for _ in range(2)]
    end = time.monotonic() + 30
    while not all(trained(process) for process in both) and time.monotonic() < end:
        time.sleep(0.005)
    both[0].signal(signal.SIGKILL)
    killed = time.monotonic()
    first = len(both[1].told())
    while len(both[1].told()) == first and both[1].alive():
        time.sleep(0.005)
    assert time.monotonic() - killed < EXPIRED_S / 2, "it waited for the heartbeat"
    assert both[1].wait()
    assert both[1].ended() == "finished"
    assert content(root) == content(undisturbed)


def test_asked_to_stop_and_begun_again(start: Start, undisturbed: Path, tmp_path: Path) -> None:
    root = tmp_path / "store"
    process = start(root, "serial")
    end = time.monotonic() + 30
    while len(trained(process)) < 3 and time.monotonic() < end:
        time.sleep(0.005)
    process.signal(signal.SIGINT)
    assert process.wait()
    assert process.ended() == "interrupted"
    assert not list((root / "owners").iterdir())
    assert check(root) == []
    process = start(root, "serial")
    assert process.wait()
    assert content(root) == content(undisturbed)
