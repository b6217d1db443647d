"""kill -9 at moments that a seed fixes: nothing lost, nothing repeated, nothing different."""

import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from batchlab.store.check import check
from batchlab.store.database import FILE, Store
from tests.faults.conftest import Process, Start
from tests.faults.study import content

KILLS = 15  # of each backend


def there(root: Path) -> tuple[set[str], set[str]]:
    """Runs that are stored, and ends of stretches that are kept."""
    if not (root / FILE).exists():
        return set(), set()
    with Store(root, create=False) as store:
        kept = {path.stem for path in (root / "checkpoints").glob("*.safetensors")}
        return store.keys(), kept


def kill(process: Process, chance: random.Random) -> None:
    workers = process.workers()
    victims = [process.number, *workers[:1]]
    process_or_worker = chance.choice(victims)
    Process(process_or_worker, process.log).signal(signal.SIGKILL)


def unrepeated(process: Process, runs: set[str], ends: set[str]) -> None:
    """What was there before the process was begun was not trained by it."""
    for line in process.told():
        if "began" in line:
            assert not runs & set(line["runs"])
            assert line["steps"] == 0 or line["began"] not in ends


@pytest.mark.parametrize("backend", ["serial", "processes"])
def test_killed_at_any_moment(
    start: Start, undisturbed: tuple[Path, float], tmp_path: Path, backend: str
) -> None:
    reference, seconds = undisturbed
    expected = content(reference)
    chance = random.Random(f"kills of {backend}")
    root, killed, finished = tmp_path / "store", 0, 0
    while killed < KILLS:
        runs, ends = there(root)
        process = start(root, backend)
        if not process.wait(chance.uniform(0, seconds)):
            kill(process, chance)
            killed += 1
        if process.wait(seconds * chance.uniform(0, 0.5)):
            pass
        else:  # it was a worker that was killed, and the others go on
            process.signal(signal.SIGKILL)
            assert process.wait()
        now, _ = there(root)
        assert runs <= now, "a finished run is lost"
        unrepeated(process, runs, ends)
        assert [damage for damage in check_there(root) if damage.kind != "leftover"] == []
        if process.ended() == "finished":
            assert content(root) == expected
            shutil.rmtree(root)
            finished += 1
        else:
            assert process.ended() is None, process.ended()
    process = start(root, backend)
    assert process.wait()
    assert process.ended() == "finished"
    assert content(root) == expected
    assert check(root) == [] or {d.kind for d in check(root)} == {"leftover"}


def check_there(root: Path) -> list[object]:
    return [] if not (root / FILE).exists() else list(check(root))


def test_a_worker_is_replaced(
    start: Start, undisturbed: tuple[Path, float], tmp_path: Path
) -> None:
    """The command goes on by itself when one of its workers is killed."""
    reference, _ = undisturbed
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
    assert content(tmp_path / "store") == content(reference)
