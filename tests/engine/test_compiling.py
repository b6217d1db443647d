"""Whether to compile: the rule, with passes that take a known time, and once for real."""

import time
from collections.abc import Callable

import pytest
import torch

from batchlab.engine import compiling
from batchlab.engine.compiling import decide
from batchlab.engine.general import GeneralRun
from batchlab.engine.settings import Settings
from tests import own

CPU = torch.device("cpu")


def lasting(seconds: float) -> Callable[[], None]:
    return lambda: time.sleep(seconds)


@pytest.fixture(autouse=True)
def compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "_missing", lambda _: None)
    monkeypatch.setattr(compiling, "LEAST_S", 0.5)


def test_faster_is_used_and_slower_is_not() -> None:
    won = decide(lasting(0.02), lasting(0.005), CPU, 1000)
    assert won.use
    assert won.note.startswith("compiled ")
    lost = decide(lasting(0.005), lasting(0.02), CPU, 1000)
    assert not lost.use
    assert lost.note.startswith("eager: compiled is 0.")


def test_a_short_job_is_not_tried() -> None:
    def never() -> None:
        raise AssertionError("was tried")

    told = decide(lasting(0.005), never, CPU, 100)
    assert not told.use
    assert "left, and compiling is tried from 2 s" in told.note
    assert told.compile_s is None


def test_a_failure_is_a_note() -> None:
    def fails() -> None:
        raise RuntimeError("no kernel\nfor this")

    told = decide(lasting(0.005), fails, CPU, 1000)
    assert not told.use
    assert told.note == "eager: compiling failed (RuntimeError: no kernel)"


def test_compiling_too_long_is_given_up() -> None:
    began = time.perf_counter()
    told = decide(lasting(0.005), lasting(30), CPU, 600)
    assert time.perf_counter() - began < 20
    assert not told.use
    assert "TimeoutError" in told.note


def test_an_alarm_that_is_swallowed_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "AGAIN_S", 0.2)
    swallowed: list[TimeoutError] = []

    def stubborn() -> None:
        while True:
            try:
                time.sleep(30)
            except TimeoutError as error:
                if swallowed:
                    raise
                swallowed.append(error)

    told = decide(lasting(0.005), stubborn, CPU, 600)
    assert len(swallowed) == 1
    assert "TimeoutError" in told.note


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr("shutil.which", lambda _: None)
    told = decide(lasting(0.005), lasting(0.001), CPU, 10**6, forced=True)
    assert (told.use, told.note) == (False, "eager: no C++ compiler")


def test_a_failing_compiler_leaves_the_run_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> Callable[[object], None]:
        def call(_: object) -> None:
            raise RuntimeError("no compiler after all")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    workload = own.prepared(torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.3))
    tried = GeneralRun(workload, Settings(8), compiled=True)
    plain = GeneralRun(workload, Settings(8))
    tried.advance(6)
    plain.advance(6)
    assert tried.notes == ["eager: compiling failed (RuntimeError: no compiler after all)"]
    assert plain.notes == []
    mine, others = tried.model.state_dict(), plain.model.state_dict()
    assert all(torch.equal(v, others[k]) for k, v in mine.items())


@pytest.mark.slow
def test_compiled_is_eager_to_rounding() -> None:
    workload = own.prepared(optimizer=lambda m: torch.optim.Adam(m.parameters(), lr=0.01))
    fast = GeneralRun(workload, Settings(16), compiled=True)
    plain = GeneralRun(workload, Settings(16))
    fast.advance(20)
    plain.advance(20)
    assert fast.notes[0].startswith("compiled ")
    torch.testing.assert_close(fast.losses(), plain.losses(), rtol=1e-4, atol=1e-5)
    for a, b in zip(fast.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
