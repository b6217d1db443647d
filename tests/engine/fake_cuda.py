"""A CUDA that only remembers what it is asked for, and in which order."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch


class Cuda:
    """Streams, graphs and workspaces as `torch.cuda` has them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, refuses: bool = False) -> None:
        self.told: list[str] = []
        self.current, self.lanes = "default", 0
        cuda = self

        class Stream:
            def __init__(self, of: torch.device | str) -> None:
                if isinstance(of, torch.device):
                    self.name, cuda.lanes = f"lane {cuda.lanes}", cuda.lanes + 1
                else:
                    self.name = of

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

    def work(self, name: str) -> Callable[[], torch.Tensor]:
        def done() -> torch.Tensor:
            self.told.append(f"{name} on {self.current}")
            return torch.ones(1)

        return done
