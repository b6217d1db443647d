"""The same tests over every backend."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from batchlab.backends import BACKENDS
from batchlab.backends.base import Interrupted, Report, Wanted, WorkerLostError
from batchlab.backends.processes import Processes


def double(item: int, report: Report) -> int:
    report(1)
    report(2)
    return 2 * item


def refuse(item: int, report: Report) -> int:  # noqa: ARG001
    raise ValueError(f"item {item} is bad")


def forever(item: int, report: Report) -> int:  # noqa: ARG001
    began = time.monotonic()
    while time.monotonic() - began < 60:
        report(1)
        time.sleep(0.01)
    raise TimeoutError("was never told to stop")


def where(item: int, report: Report) -> tuple[int, int]:  # noqa: ARG001
    import torch

    return os.getpid(), torch.get_num_threads()


def test_every_result_once_with_its_progress(name: str) -> None:
    heard: Counter[int] = Counter()
    backend = BACKENDS[name](Wanted(2, 1))
    results = dict(
        backend.map(
            double,
            [5, 6, 7],
            progress=lambda i, units: heard.update({i: units}),
            stopping=lambda: False,
        )
    )
    assert results == {0: 10, 1: 12, 2: 14}
    assert heard == {0: 3, 1: 3, 2: 3}


def test_no_items(name: str) -> None:
    backend = BACKENDS[name](Wanted(2, 1))
    silent = lambda *_: None  # noqa: E731
    assert list(backend.map(double, [], progress=silent, stopping=lambda: False)) == []


def test_workers_started_before_are_those_that_work(name: str) -> None:
    backend = BACKENDS[name](Wanted(2, 1))
    backend.start(where)
    backend.start(where)
    here = {os.getpid(), *(child.pid for child in multiprocessing.active_children())}
    silent = lambda *_: None  # noqa: E731
    for turn in range(2):  # the second time they are others
        told = dict(backend.map(where, [1, 2, 3], progress=silent, stopping=lambda: False))
        assert len(told) == 3
        if name != "ray":
            assert all((pid in here) == (turn == 0 or name == "serial") for pid, _ in told.values())


def test_an_exception_comes_through(name: str) -> None:
    backend = BACKENDS[name](Wanted(2, 1))
    with pytest.raises(ValueError, match="is bad"):
        list(backend.map(refuse, [1], progress=lambda *_: None, stopping=lambda: False))


def test_stopping_interrupts_what_is_under_way(name: str) -> None:
    backend = BACKENDS[name](Wanted(2, 1))
    ticks: list[int] = []
    began = time.monotonic()
    with pytest.raises(Interrupted):
        list(
            backend.map(
                forever,
                [1, 2, 3],
                progress=lambda _, units: ticks.append(units),
                stopping=lambda: len(ticks) > 3,
            )
        )
    assert time.monotonic() - began < 50


def stamp(item: int, report: Report) -> tuple[float, float]:
    began = time.monotonic()
    time.sleep(0.05 * item)
    report(1)
    return began, time.monotonic()


AFTER = [None, 0, None, 0, 2, 4]


def test_an_item_waits_for_another(name: str) -> None:
    results = dict(
        BACKENDS[name](Wanted(2, 1)).map(
            stamp,
            [3, 1, 1, 2, 1, 1],
            progress=lambda *_: None,
            stopping=lambda: False,
            after=AFTER,
        )
    )
    assert sorted(results) == list(range(6))
    for index, other in enumerate(AFTER):
        if other is not None:
            assert results[index][0] >= results[other][1]


def test_processes_do_not_wait_for_a_whole_level() -> None:
    results = dict(
        BACKENDS["processes"](Wanted(2, 1)).map(
            stamp,
            [40, 0, 0, 0, 0],
            progress=lambda *_: None,
            stopping=lambda: False,
            after=[None, None, 1, 2, 3],
        )
    )
    assert results[4][1] < results[0][1]


@pytest.mark.parametrize("after", [[0], [None, 2, None], [1, None], [None, -1], [None]])
def test_nothing_waits_for_a_later_item(name: str, after: list[int | None]) -> None:
    items = [1, 2] if len(after) == 1 and after[0] is None else [1] * len(after)
    silent = lambda *_: None  # noqa: E731
    with pytest.raises(ValueError, match="wait"):
        list(
            BACKENDS[name](Wanted(2, 1)).map(
                double, items, progress=silent, stopping=lambda: False, after=after
            )
        )


def fail_second(item: int, report: Report) -> int:
    report(1)
    if item == 1:
        raise ValueError("item 1 is bad")
    return item


def test_what_waits_for_a_failure_is_not_begun(name: str) -> None:
    results = BACKENDS[name](Wanted(1, 1)).map(
        fail_second,
        [0, 1, 2],
        progress=lambda *_: None,
        stopping=lambda: False,
        after=[None, 0, 1],
    )
    assert next(results) == (0, 0)
    with pytest.raises(ValueError, match="is bad"):
        next(results)


def test_a_refused_item_leaves_out_what_waits_for_it(name: str) -> None:
    asked: list[int] = []

    def begin(index: int) -> bool:
        asked.append(index)
        return index != 2

    results = BACKENDS[name](Wanted(2, 1)).map(
        double,
        [5, 6, 7, 8, 9, 10],
        progress=lambda *_: None,
        stopping=lambda: False,
        after=AFTER,
        begin=begin,
    )
    assert dict(results) == {0: 10, 1: 12, 3: 16}
    assert sorted(asked) == [0, 1, 2, 3]


def die_once(item: Path, report: Report) -> str:
    report(1)
    if not item.exists():
        item.write_text("")
        os.kill(os.getpid(), signal.SIGKILL)
    return item.name


def die(item: int, report: Report) -> int:  # noqa: ARG001
    if item:
        os.kill(os.getpid(), item)
    os._exit(5)


# That Ray's tasks lose theirs: tests/faults/test_ray.py. The counting is the same code.


def test_a_lost_worker_is_replaced(tmp_path: Path) -> None:
    items = [tmp_path / name for name in "abc"]
    results = dict(
        Processes(2, 1, "forkserver").map(
            die_once, items, progress=lambda *_: None, stopping=lambda: False, after=[None, 0, 1]
        )
    )
    assert results == {0: "a", 1: "b", 2: "c"}


class KilledMidway:
    """A result whose worker is killed when a part of it has been sent."""

    def __reduce__(self) -> tuple[type, tuple[bytes]]:
        main = threading.get_ident()
        threading.Thread(target=kill_when_sending, args=(main,)).start()
        return bytes, (bytes(200_000_000),)


def kill_when_sending(main: int) -> None:
    while sys._current_frames()[main].f_code.co_name != "_send":
        pass
    time.sleep(0.002)
    os.kill(os.getpid(), signal.SIGKILL)


def die_sending_once(item: Path, report: Report) -> object:
    report(1)
    if item.exists():
        return item.name
    item.write_text("")
    return KilledMidway()


def test_a_worker_lost_with_half_of_its_result_sent(tmp_path: Path) -> None:
    items = [tmp_path / name for name in "abc"]
    heard: Counter[int] = Counter()
    results = dict(
        Processes(2, 1, "forkserver").map(
            die_sending_once,
            items,
            progress=lambda index, units: heard.update({index: units}),
            stopping=lambda: False,
        )
    )
    assert results == {0: "a", 1: "b", 2: "c"}
    assert heard == {0: 1, 1: 1, 2: 1}


def test_workers_lost_before_they_have_work() -> None:
    backend = Processes(2, 1)
    before = multiprocessing.active_children()
    backend.start(double)
    workers = [child for child in multiprocessing.active_children() if child not in before]
    assert len(workers) == 2
    for worker in workers:
        worker.kill()
    silent = lambda *_: None  # noqa: E731
    results = dict(backend.map(double, [5, 6], progress=silent, stopping=lambda: False))
    assert results == {0: 10, 1: 12}
    assert not any(child in multiprocessing.active_children() for child in workers)


UNUSED = """
from batchlab.backends.processes import Processes
backend = Processes(2, 1, "fork")
backend.start(print)
raise SystemExit(3)
"""


def test_workers_that_are_never_used_end_with_the_command() -> None:
    assert subprocess.run([sys.executable, "-c", UNUSED], timeout=60, check=False).returncode == 3


AT_ONCE = """
import multiprocessing, os, signal, time
from batchlab.backends.processes import Processes
from tests.backends.test_backends import double
if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    backend = Processes(2, 1)
    backend.start(double)
    for _ in range(40):  # while they import
        for number in (signal.SIGINT, signal.SIGTERM):
            os.killpg(0, number)
        time.sleep(0.02)
    workers = multiprocessing.active_children()
    silent = lambda *_: None
    print(sorted(backend.map(double, [5, 6], progress=silent, stopping=lambda: False)))
    print([worker.exitcode for worker in workers])
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, [])
"""


def test_signals_to_all_while_workers_import(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(AT_ONCE)
    run = subprocess.run(
        [sys.executable, script],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        start_new_session=True,
    )
    assert (run.stdout, run.stderr) == ("[(0, 10), (1, 12)]\n[0, 0]\n", "")


class Unpicklable(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def odd(item: int, report: Report) -> object:  # noqa: ARG001
    if item:
        raise Unpicklable(1, 2)
    return lambda: None


def test_what_can_not_be_sent_back_is_told_of() -> None:
    silent = lambda *_: None  # noqa: E731
    for item, said in ((0, "pickle"), (1, "Unpicklable: 1 and 2")):
        with pytest.raises(Exception, match=said):
            list(Processes(1, 1).map(odd, [item], progress=silent, stopping=lambda: False))


def test_a_workers_traceback_comes_too() -> None:
    silent = lambda *_: None  # noqa: E731
    with pytest.raises(ValueError, match="is bad") as raised:
        list(Processes(1, 1).map(refuse, [1], progress=silent, stopping=lambda: False))
    assert any("in refuse" in note for note in raised.value.__notes__)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (signal.SIGKILL, "killed: out of memory? then give fewer --workers"),
        (signal.SIGSEGV, "by signal 11, Segmentation fault"),
        (0, "exit status 5: what it said stands above"),
    ],
)
def test_but_not_for_ever(how: int, said: str) -> None:
    silent = lambda *_: None  # noqa: E731
    with pytest.raises(WorkerLostError) as raised:
        list(
            Processes(1, 1, "forkserver").map(
                die, [int(how)], progress=silent, stopping=lambda: False
            )
        )
    assert str(raised.value) == (
        f"a worker process was lost 3 times at one job ({said}); what is finished is kept, the "
        "same command goes on from there"
    )


def test_they_are_other_processes_with_their_own_threads(name: str) -> None:
    results = dict(
        BACKENDS[name](Wanted(2, 1)).map(
            where, [0, 1], progress=lambda *_: None, stopping=lambda: False
        )
    )
    for pid, threads in results.values():
        assert (pid == os.getpid()) == (name == "serial")
        assert threads == 1


def test_leaving_early_ends_what_is_under_way(name: str) -> None:
    results = BACKENDS[name](Wanted(2, 1)).map(
        wait_unless_first, [0, 1], progress=lambda *_: None, stopping=lambda: False
    )
    began = time.monotonic()
    assert next(results) == (0, 0)
    results.close()
    assert time.monotonic() - began < 50


def wait_unless_first(item: int, report: Report) -> int:
    return forever(item, report) if item else item
