"""What is asked of CUDA to record and replay, by a CUDA that only remembers it; graphs themselves
are tested on a GPU in test_replay.py."""

import gc

import pytest
import torch

from batchlab.engine.recorder import Graphs, again, never, on_cuda
from tests.engine.fake_cuda import Cuda

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def test_captured_once_and_replayed_where_the_caller_is(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = Cuda(monkeypatch)
    replay = Graphs(GPU).record(cuda.work("step"))
    assert cuda.told == ["clear", "capture", "step on default", "captured", "clear"]
    assert replay() is replay()
    assert cuda.told[5:] == ["replay on default"] * 2


def test_nothing_is_collected_while_it_captures(monkeypatch: pytest.MonkeyPatch) -> None:
    Cuda(monkeypatch)
    seen: list[bool] = []

    def work() -> torch.Tensor:
        seen.append(gc.isenabled())
        return torch.ones(1)

    Graphs(GPU).record(work)
    assert seen == [False]
    assert gc.isenabled()


def test_a_capture_that_fails_leaves_the_current_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = Cuda(monkeypatch, refuses=True)
    with pytest.raises(RuntimeError, match="previous error"):
        Graphs(GPU).record(cuda.work("step"))
    assert cuda.told == ["clear", "capture", "step on default", "clear"]
    assert cuda.current == "default"


def test_who_records(monkeypatch: pytest.MonkeyPatch) -> None:
    Cuda(monkeypatch)
    assert isinstance(on_cuda(GPU), Graphs)
    assert on_cuda(CPU) is None
    assert never(GPU) is None
    record = again(CPU)
    assert record is not None
    assert record.record(work := lambda: torch.ones(1)) is work
