"""The same tests over every backend."""

import os
import time

import pytest

from batchlab.backends import BACKENDS
from batchlab.backends.base import Interrupted, Report

NAMES = sorted(BACKENDS)


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


@pytest.mark.parametrize("name", NAMES)
def test_every_result_once_with_its_progress(name: str) -> None:
    heard: list[tuple[int, int]] = []
    backend = BACKENDS[name](2, 1)
    results = dict(
        backend.map(
            double,
            [5, 6, 7],
            progress=lambda i, units: heard.append((i, units)),
            stopping=lambda: False,
        )
    )
    assert results == {0: 10, 1: 12, 2: 14}
    assert sorted(heard) == [(i, u) for i in range(3) for u in (1, 2)]


@pytest.mark.parametrize("name", NAMES)
def test_no_items(name: str) -> None:
    backend = BACKENDS[name](2, 1)
    silent = lambda *_: None  # noqa: E731
    assert list(backend.map(double, [], progress=silent, stopping=lambda: False)) == []


@pytest.mark.parametrize("name", NAMES)
def test_an_exception_comes_through(name: str) -> None:
    backend = BACKENDS[name](2, 1)
    with pytest.raises(ValueError, match="is bad"):
        list(backend.map(refuse, [1], progress=lambda *_: None, stopping=lambda: False))


@pytest.mark.parametrize("name", NAMES)
def test_stopping_interrupts_what_is_under_way(name: str) -> None:
    backend = BACKENDS[name](2, 1)
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


def test_processes_are_other_processes_with_their_own_threads() -> None:
    results = dict(
        BACKENDS["processes"](2, 1).map(
            where, [0, 1], progress=lambda *_: None, stopping=lambda: False
        )
    )
    for pid, threads in results.values():
        assert pid != os.getpid()
        assert threads == 1
