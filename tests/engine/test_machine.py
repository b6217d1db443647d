"""Seconds and memory by micro-batch size: what is told, what is put back, where it stops."""

import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from batchlab.engine import memory
from batchlab.engine.machine import Machine, Seconds, Size, machine
from batchlab.spec import UserError
from tests import own


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=0.1, weight_decay=0.1)


@pytest.fixture(autouse=True)
def short_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchlab.engine.machine.TURN_S", 0.002)
    monkeypatch.setattr("batchlab.engine.machine.MOST_ROUNDS", 4)


def test_every_size_up_to_the_data() -> None:
    told = machine(own.prepared(optimizer=adam))
    assert [size.micro_batch for size in told.sizes] == [1, 2, 4, 8, 16, 32]
    assert told.stopped == "every size up to the data was tried"
    assert told.memory_is == "estimated"
    for size in told.sizes:
        for spread in (size.compute, size.loading):
            assert 0 < spread.low <= spread.median <= spread.high
            assert spread.rounds == 4
    weights = [size.memory_bytes for size in told.sizes]
    assert weights == sorted(set(weights))


def test_model_and_generators_are_put_back() -> None:
    workload = own.prepared(nn.BatchNorm1d(8), nn.Dropout(0.5), optimizer=adam)
    model = workload.given.model
    before = {k: v.clone() for k, v in model.state_dict().items()}
    grad = torch.ones(8)
    next(m for m in model.modules() if isinstance(m, nn.Linear)).bias.grad = grad
    model[2].eval()  # type: ignore[index]
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    told = machine(workload)
    assert torch.equal(torch.rand(2), expected)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert [m.training for m in model] == [True, True, False, True, True]  # type: ignore[attr-defined]
    assert [p.grad is grad for p in model.parameters()] == [False, True, *[False] * 4]
    assert not workload.given.optimizer.state
    assert workload.given.optimizer.param_groups[0]["lr"] == 0.1
    assert [size.micro_batch for size in told.sizes] == [2, 4, 8, 16, 32]
    assert any("micro-batch 1 fails (ValueError: Expected more than 1" in n for n in told.notes)


def test_put_back_after_a_failure_too() -> None:
    calls = []

    def loss(output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        calls.append(len(y))
        if len(calls) > 20:
            raise ArithmeticError("of the user")
        return F.cross_entropy(output, y)

    workload = own.prepared(nn.BatchNorm1d(8), loss=loss)
    before = {k: v.clone() for k, v in workload.given.model.state_dict().items()}
    with pytest.raises(ArithmeticError, match="of the user"):
        machine(workload)
    after = workload.given.model.state_dict()
    assert all(torch.equal(v, before[k]) for k, v in after.items())


def test_stops_at_the_cap() -> None:
    workload = own.prepared()
    free = machine(workload, sizes=[1, 2, 4, 8])
    told = machine(workload, cap_bytes=free.sizes[2].memory_bytes + 32)
    assert [size.micro_batch for size in told.sizes] == [1, 2, 4]
    assert told.stopped.startswith("8 would take an estimated")
    with pytest.raises(UserError, match=r"own: no micro-batch size can be measured: 1 would take"):
        machine(workload, cap_bytes=1)


def test_stops_where_the_device_has_no_more() -> None:
    def loss(output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if len(y) > 8:  # as many as the present batch, on which it was checked
            raise torch.OutOfMemoryError("out of memory")
        return F.cross_entropy(output, y)

    told = machine(own.prepared(loss=loss))
    assert [size.micro_batch for size in told.sizes] == [1, 2, 4, 8]
    assert told.stopped == "16 is out of memory on cpu"


def test_stops_at_the_budget() -> None:
    told = machine(own.prepared(), budget_s=1e-6)
    assert [size.micro_batch for size in told.sizes] == [1]
    assert told.stopped == "2 and more would take longer than the budget of 1e-06 s"


def test_a_larger_size_leaves_time_for_all_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(perf_counter=lambda: 0.0, process_time=lambda: 0.0)
    monkeypatch.setattr("batchlab.engine.machine.time", clock)
    monkeypatch.setattr("batchlab.engine.machine.seconds", lambda *_: 1.0)
    # 2 is expected to take 2 s: twelve rounds with that at 1, and three passes of its own, are 42.
    told = machine(own.prepared(), budget_s=42, rounds=30)
    assert [s.micro_batch for s in told.sizes] == [1, 2]
    assert told.stopped == "4 and more would take longer than the budget of 42 s"
    few = machine(own.prepared(), budget_s=42, rounds=9)
    assert [s.micro_batch for s in few.sizes] == [1, 2, 4]


def test_what_is_needed_may_exceed_the_budget() -> None:
    told = machine(own.prepared(), budget_s=1e-6, needed=4)
    assert [size.micro_batch for size in told.sizes] == [1, 2, 4]
    assert len(told.sizes[-1].compute.each) == 3
    assert told.stopped == "8 and more would take longer than the budget of 1e-06 s"


def test_sizes_beyond_the_data() -> None:
    with pytest.raises(UserError, match=r"micro-batch 64: must be 1 to the 40 training samples"):
        machine(own.prepared(), sizes=[8, 64])


def test_slow_items_are_loading_and_not_compute() -> None:
    class Slow(own.Rows):
        def __getitem__(self, row: int) -> Any:
            time.sleep(0.002)
            return super().__getitem__(row)

    told = machine(own.prepared(train=Slow(noise=0.1)), sizes=[8])
    assert told.sizes[0].loading.low > 8 * 0.002
    assert told.sizes[0].compute.median < 8 * 0.002


def test_steps_of_micro_batches() -> None:
    def size(micro: int, seconds: float) -> Size:
        return Size(micro, Seconds(seconds, seconds, seconds, 3), Seconds(0, 0, 0, 3), 1)

    told = Machine(
        "cpu", 1, (size(1, 1.0), size(4, 2.0), size(8, 5.0)), Seconds(0.5, 0.5, 0.5, 3), "", ""
    )
    assert told.step_seconds(8, 8) == 5.5
    assert told.step_seconds(9, 4) == 6.5
    assert told.fastest(8) == 4
    assert told.fastest(3) == 1
    with pytest.raises(ValueError, match="micro-batch 2 was not tried; choose from 1, 4, 8"):
        told.step_seconds(8, 2)


def test_memory_of_a_perceptron() -> None:
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    x = torch.randn(11, 5)
    saved = memory.activation_bytes(lambda: model(x).sum(), model)
    # The inputs of both products; tanh's output is the second one, and the largest.
    assert saved == 4 * (11 * 5 + 11 * 7 + 2 * 11 * 7)
    optimizer = adam(model)
    numbers = 5 * 7 + 7 + 7 * 3 + 3
    assert memory.fixed_bytes(model, optimizer) == 4 * 2 * numbers
    model(x).sum().backward()
    optimizer.step()
    assert memory.fixed_bytes(model, optimizer) == 4 * (4 * numbers + 4)  # and four step counts
