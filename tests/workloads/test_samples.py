"""When a data set may become tensors, and when it must not."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from batchlab.workloads.samples import Items, Samples
from batchlab.workloads.split import read
from batchlab.workloads.tree import leaves, map_tensors, same
from tests import own

CPU = torch.device("cpu")


class Listed(Dataset[Any]):
    """Whatever a list holds."""

    def __init__(self, items: list[Any]) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, row: int) -> Any:
        return self._items[row]


class Flipped(own.Rows):
    """Turned round at every tenth fetch or so, by NumPy's generator."""

    def __getitem__(self, row: int) -> Any:
        x, y = super().__getitem__(row)
        return (x.flip(0) if np.random.random() < 0.1 else x), y


def made(dataset: Dataset[Any], collate: Any = default_collate) -> Samples:
    np.random.seed(0)
    return Items(dataset, collate, CPU).in_tensors()


def mixed(items: list[Any]) -> Any:
    x, y = default_collate(items)
    return x - x.mean(0), y


def same_length(items: list[list[int]]) -> torch.Tensor:
    longest = max(len(item) for item in items)
    return torch.tensor([item + [0] * (longest - len(item)) for item in items])


def test_numbers_and_trees_become_tensors() -> None:
    x, y = own.tensors()
    items = [{"x": (a, 2.5), "y": int(b)} for a, b in zip(x, y, strict=True)]
    told = made(Listed(items))
    assert told.in_memory
    batch = told.batch(torch.tensor([4, 2]))
    assert torch.equal(batch["x"][0], x[[4, 2]])
    assert batch["x"][1].tolist() == [2.5, 2.5]
    assert torch.equal(batch["y"], y[[4, 2]])


@pytest.mark.parametrize(
    ("dataset", "collate"),
    [
        (Flipped(), default_collate),
        (own.Rows(noise=1e-6), default_collate),
        (own.Rows(), mixed),
        (own.Words(), own.padded),
        # One sample is longer than all others, and is not among those that are looked at.
        (Listed([[1, 2]] * 100 + [[1, 2, 3]] + [[1, 2]] * 100), same_length),
        (Listed(["a text", "another"] * 10), lambda items: list(items)),
        (Listed(["a text", "another"] * 10), lambda items: {"texts": items}),
    ],
)
def test_what_must_stay_items(dataset: Dataset[Any], collate: Any) -> None:
    told = made(dataset, collate)
    assert not told.in_memory
    assert len(told) == len(dataset)  # type: ignore[arg-type]


def test_what_the_loader_says_is_heard() -> None:
    loader = DataLoader(Flipped(), batch_size=6, drop_last=True, num_workers=2, shuffle=True)
    told = read("training", loader, CPU)
    assert (told.batch_size, told.drop_last) == (6, True)
    assert told.notes == ("training samples are loaded in this process, not in 2 workers",)
    plain = read("training", DataLoader(own.Rows(), batch_size=6), CPU)
    assert plain.notes == ("the training DataLoader does not shuffle; batches here are shuffled",)
    assert read("validation", DataLoader(own.Rows(), batch_size=6), CPU).notes == ()


def test_trees() -> None:
    tree = {"a": (torch.ones(2), [torch.zeros(3), "text"]), "b": 4}
    twice = map_tensors(lambda t: 2 * t, tree)
    assert [x.tolist() if torch.is_tensor(x) else x for x in leaves(twice)] == [
        [2.0, 2.0], [0.0, 0.0, 0.0], "text", 4,
    ]  # fmt: skip
    assert isinstance(twice["a"], tuple)
    assert same((torch.ones(2),), [torch.ones(2)])
    assert not same((torch.ones(2),), (torch.ones(2, dtype=torch.float64),))
    assert not same(("text",), ("text",))
