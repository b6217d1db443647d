"""Seconds of whole steps: the fast end of the rounds, and accumulation beyond memory."""

import pytest

from batchlab.advice import timing
from batchlab.engine.machine import Machine, Seconds, Size
from batchlab.spec import UserError

ROUNDS = 24


def size(micro: int, compute: float, busy: float = 1.0) -> Size:
    """A quarter of the rounds undisturbed, the others `busy` times as long."""
    times = [compute * (1 if k % 4 == 0 else busy) for k in range(ROUNDS)]
    return Size(micro, Seconds.of(times), Seconds.of([0.0] * ROUNDS), 1)


def machine(*sizes: Size, stopped: str = "every size up to the data was tried") -> Machine:
    return Machine("cpu", 1, sizes, Seconds.of([0.5] * ROUNDS), stopped, "estimated")


def test_what_else_runs_does_not_count() -> None:
    told = timing.throughput(machine(size(1, 1.0, busy=3), size(2, 1.5, busy=5)), [1, 2])
    assert told.at(1).seconds.effect == pytest.approx(1.5)
    assert told.at(2).seconds.effect == pytest.approx(2.0)


def test_sizes_end_at_half_the_data() -> None:
    tried = machine(size(1, 1.0), size(2, 1.5), size(4, 2.0))
    assert timing.sizes(tried, 7) == [1, 2]
    assert timing.micro_batch(tried, 4) is None


def test_beyond_memory_sizes_go_on_by_accumulation() -> None:
    tried = machine(size(1, 1.0), size(2, 1.5), stopped="4 is out of memory on cuda")
    assert timing.sizes(tried, 16) == [1, 2, 4, 8]
    told = timing.throughput(tried, [1, 2, 4, 8])
    assert told.at(8).seconds.effect == pytest.approx(4 * 1.5 + 0.5)
    assert timing.micro_batch(tried, 8) == 2


def test_nothing_timed() -> None:
    with pytest.raises(UserError, match="no batch size was timed"):
        timing.throughput(machine(size(1, 1.0)), [])
