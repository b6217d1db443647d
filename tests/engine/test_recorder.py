"""What is asked of CUDA, in which order, by a CUDA that only remembers it; graphs themselves are
tested on a GPU in test_replay.py."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from batchlab.engine import recorder
from batchlab.engine.recorder import Graphs, again, never, on_cuda

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


class Cuda:
    """Streams, graphs and workspaces as `torch.cuda` has them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, refuses: bool = False) -> None:
        self.told: list[str] = []
        self.current = "default"
        cuda = self

        class Stream:
            def __init__(self, name: Any) -> None:
                self.name = "side" if isinstance(name, torch.device) else name

            def wait_stream(self, other: "Stream") -> None:
                cuda.told.append(f"{self.name} waits for {other.name}")

        class CUDAGraph:
            def replay(self) -> None:
                cuda.told.append(f"replay on {cuda.current}")

        @contextmanager
        def stream(of: Stream) -> Iterator[None]:
            before, cuda.current = cuda.current, of.name
            try:
                yield
            finally:
                cuda.current = before

        @contextmanager
        def graph(_: CUDAGraph, stream: Stream) -> Iterator[None]:
            cuda.current = stream.name
            cuda.told.append("capture")
            yield
            if refuses:  # where a capture fails, PyTorch does not come to putting the stream back
                raise RuntimeError("CUDA error: operation failed due to a previous error")
            cuda.current = "default"
            cuda.told.append("captured")

        for name, fake in {
            "Stream": Stream,
            "CUDAGraph": CUDAGraph,
            "stream": stream,
            "graph": graph,
            "current_stream": lambda _: Stream(cuda.current),
        }.items():
            monkeypatch.setattr(torch.cuda, name, fake)
        monkeypatch.setattr(
            torch._C,
            "_cuda_clearCublasWorkspaces",
            lambda: self.told.append("clear"),
            raising=False,
        )
        recorder._stream.cache_clear()

    def work(self, name: str) -> Callable[[], torch.Tensor]:
        def done() -> torch.Tensor:
            self.told.append(f"{name} on {self.current}")
            return torch.ones(1)

        return done


@pytest.fixture(autouse=True)
def _no_stream_is_kept() -> Iterator[None]:
    yield
    recorder._stream.cache_clear()


def test_the_work_waits_its_turn_on_another_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = Cuda(monkeypatch)
    step = cuda.work("step")
    Graphs(GPU).run(lambda: (step(), None)[1])
    assert cuda.told == ["side waits for default", "step on side", "default waits for side"]
    assert cuda.current == "default"


def test_captured_once_and_replayed_where_the_caller_is(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = Cuda(monkeypatch)
    replay = Graphs(GPU).record(cuda.work("step"))
    assert cuda.told == ["clear", "capture", "step on side", "captured", "clear"]
    assert replay() is replay()
    assert cuda.told[5:] == ["replay on default"] * 2


def test_a_capture_that_fails_leaves_the_current_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = Cuda(monkeypatch, refuses=True)
    with pytest.raises(RuntimeError, match="previous error"):
        Graphs(GPU).record(cuda.work("step"))
    assert cuda.told == ["clear", "capture", "step on side", "clear"]
    assert cuda.current == "default"


def test_who_records(monkeypatch: pytest.MonkeyPatch) -> None:
    Cuda(monkeypatch)
    assert isinstance(on_cuda(GPU), Graphs)
    assert on_cuda(CPU) is None
    assert never(GPU) is None
    record = again(CPU)
    assert record is not None
    assert record.record(work := lambda: torch.ones(1)) is work
