"""What is asked of CUDA to have runs side by side; that it changes no number is tested on a GPU in
test_replay.py."""

from collections.abc import Iterator

import pytest
import torch

from batchlab.engine import lanes
from batchlab.engine.lanes import Lanes
from tests.engine.fake_cuda import Cuda


@pytest.fixture(autouse=True)
def _no_stream_is_kept() -> Iterator[None]:
    lanes._stream.cache_clear()
    yield
    lanes._stream.cache_clear()


def test_all_begin_before_any_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = Cuda(monkeypatch)
    done = Lanes(torch.device("cuda", 0), 2).each([cuda.work("one"), cuda.work("other")])
    assert torch.equal(torch.stack(done), torch.ones(2, 1))
    assert cuda.told == [
        "lane 0 waits for default",
        "lane 1 waits for default",
        "one on lane 0",
        "other on lane 1",
        "default waits for lane 0",
        "default waits for lane 1",
    ]
    assert cuda.current == "default"


def test_streams_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = Cuda(monkeypatch)
    for _ in range(3):
        Lanes(torch.device("cuda", 0), 2)
    assert cuda.lanes == 2


def test_one_after_another_on_a_cpu() -> None:
    order: list[int] = []

    def work(number: int) -> int:
        order.append(number)
        return number

    assert Lanes(torch.device("cpu"), 2).each([lambda: work(1), lambda: work(2)]) == [1, 2]
    assert order == [1, 2]
