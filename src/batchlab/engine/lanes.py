"""Where runs that go side by side have their work done: on a GPU each on a stream of its own.

A small step's kernels leave most of a GPU idle, and kernels of different streams run at the same
time. Each is the kernel that it would be alone: no number depends on what runs beside it.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TypeVar

import torch

T = TypeVar("T")


class Lanes:
    """As many as there are runs; on a CPU they are one after another."""

    def __init__(self, device: torch.device, count: int) -> None:
        self._device = device
        on_gpu = device.type == "cuda"
        self._streams = [_stream(device, lane) for lane in range(count)] if on_gpu else []

    def each(self, works: Sequence[Callable[[], T]]) -> list[T]:
        """Do them all, each in its lane, and give what they return; no host-device sync.

        They come after all that the current stream has been given, and before all that it will be.
        """
        if not self._streams:
            return [work() for work in works]
        here = torch.cuda.current_stream(self._device)
        for lane in self._streams:
            lane.wait_stream(here)
        returned = []
        for lane, work in zip(self._streams, works, strict=True):
            with torch.cuda.stream(lane):
                returned.append(work())
        for lane in self._streams:
            here.wait_stream(lane)
        return returned


@lru_cache(maxsize=64)
def _stream(device: torch.device, lane: int) -> torch.cuda.Stream:  # noqa: ARG001, of the key
    """Made once: libraries keep memory for every stream that they have seen."""
    return torch.cuda.Stream(device)
