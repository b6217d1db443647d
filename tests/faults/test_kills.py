"""kill -9 at moments that a seed fixes: nothing lost, nothing repeated, nothing different."""

import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from batchlab.store.check import Damage, check
from batchlab.store.database import FILE, Store
from tests.backends.conftest import NO_RAY
from tests.faults.conftest import Process, Start
from tests.faults.study import content

KILLS = {"serial": 14, "processes": 13, "ray": 3}
PIECES = 10  # begun between two kills, at the most
MOMENT_S = 0.1


def there(root: Path) -> tuple[set[str], set[str]]:
    """Runs that are stored, and ends of stretches that are kept."""
    if not (root / FILE).exists():
        return set(), set()
    with Store(root, create=False) as store:
        kept = {path.stem for path in (root / "checkpoints").glob("*.safetensors")}
        return store.keys(), kept


def some_way(process: Process, chance: random.Random) -> bool:
    """Let it begin some pieces and go on for a moment; whether it is still alive then.

    In pieces, so that a slow machine is no different from a fast one.
    """
    end = len(process.told()) + chance.randrange(PIECES)
    while len(process.told()) < end and process.alive():
        time.sleep(0.002)
    return not process.wait(chance.uniform(0, MOMENT_S))


def unrepeated(process: Process, runs: set[str], ends: set[str]) -> None:
    """What was there before the process was begun was not trained by it."""
    for line in process.told():
        if "began" in line:
            assert not runs & set(line["runs"])
            assert line["steps"] == 0 or line["began"] not in ends


@pytest.mark.slow
@pytest.mark.parametrize("backend", KILLS)
def test_killed_at_any_moment(
    start: Start, undisturbed: Path, tmp_path: Path, backend: str
) -> None:
    if backend == "ray":
        pytest.importorskip("ray", reason=NO_RAY)
    expected = content(undisturbed)
    chance = random.Random(f"kills of {backend}")
    root, killed = tmp_path / "store", 0
    while killed < KILLS[backend]:
        runs, ends = there(root)
        process = start(root, backend)
        while some_way(process, chance):
            workers = process.workers()
            victim = chance.choice([process.number, *workers[:1]])
            Process(victim, process.log).signal(signal.SIGKILL)
            killed += 1
            if victim == process.number:
                assert process.wait()
                for worker in workers:
                    assert Process(worker, process.log).wait(), "a worker works for nobody"
                process.wait_for_ray()
        now, _ = there(root)
        assert runs <= now, "a finished run is lost"
        unrepeated(process, runs, ends)
        assert {damage.kind for damage in damaged(root)} <= {"leftover"}
        if "3 times at one job" in str(process.ended()):
            continue  # it gave up; the next one goes on
        if process.ended() is not None:
            finished(process, root, expected)
            shutil.rmtree(root)
    process = start(root, backend)
    assert process.wait()
    finished(process, root, expected)


def finished(process: Process, root: Path, expected: object) -> None:
    assert process.ended() == "finished"
    assert content(root) == expected
    assert {damage.kind for damage in damaged(root)} <= {"leftover"}


def damaged(root: Path) -> list[Damage]:
    return check(root) if (root / FILE).exists() else []


def test_a_worker_is_replaced(start: Start, undisturbed: Path, tmp_path: Path) -> None:
    """The command goes on by itself when one of its workers is killed."""
    process = start(tmp_path / "store", "processes")
    for _ in range(2):
        end = time.monotonic() + 30
        begun = len(process.told())
        while len(process.told()) == begun and time.monotonic() < end:
            time.sleep(0.005)
        workers = process.workers()
        assert workers
        Process(workers[0], process.log).signal(signal.SIGKILL)
    assert process.wait()
    assert process.ended() == "finished"
    assert content(tmp_path / "store") == content(undisturbed)
