"""A split's samples, of which any batch can be taken: as tensors, or item by item.

Shapes: N samples, B of a batch.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, final

import torch
from torch.utils.data import Dataset

from batchlab.workloads.tree import leaves, map_tensors, move, same

MEMORY_CAP = 2**30  # bytes of a split that are kept as tensors
LOAD_S = 60.0  # no longer than so is spent on collating a split once
TWICE = 64  # items taken twice, to see whether they stay the same
CHUNK = 256  # items collated at once

Collate = Callable[[list[Any]], Any]


class Samples(ABC):
    """N samples. `rows` of a batch are int64 indices (B) on `device`."""

    device: torch.device  # where the indices are wanted
    in_memory: bool

    @abstractmethod
    def __len__(self) -> int:
        """N."""

    @abstractmethod
    def batch(self, rows: torch.Tensor) -> Any:
        """The samples of these rows, in this order, as one batch on the model's device."""

    @abstractmethod
    def bytes_each(self) -> int:
        """Bytes of tensors a sample, of the first one where they differ."""


@final
class Tensors(Samples):
    """A tree of tensors whose first dimension is N, on the device where it has room for them."""

    in_memory = True

    def __init__(self, tree: Any, target: torch.device) -> None:
        self._target = target
        self.device = target if _has_room(tree, target) else torch.device("cpu")
        self._tree = move(tree, self.device)

    def __len__(self) -> int:
        return len(next(leaves(self._tree)))

    def batch(self, rows: torch.Tensor) -> Any:
        """Rows of every tensor; no host-device sync where the device has them."""
        return move(map_tensors(lambda t: t.index_select(0, rows), self._tree), self._target)

    def bytes_each(self) -> int:
        """Exact: all are alike."""
        return sum(t[:1].numel() * t.element_size() for t in leaves(self._tree))


@final
class Items(Samples):
    """A map-style data set, collated batch by batch, in this process."""

    in_memory = False
    device = torch.device("cpu")

    def __init__(self, dataset: Dataset[Any], collate: Collate, target: torch.device) -> None:
        self._dataset, self._collate, self._target = dataset, collate, target

    def __len__(self) -> int:
        return len(self._dataset)  # type: ignore[arg-type]

    def batch(self, rows: torch.Tensor) -> Any:
        """Items fetched and collated as a `DataLoader` does it, then moved."""
        return move(self.collated(rows.tolist()), self._target)

    def bytes_each(self) -> int:
        """Of the first sample."""
        tensors = [t for t in leaves(self.collated([0])) if isinstance(t, torch.Tensor)]
        return sum(t.numel() * t.element_size() for t in tensors)

    def collated(self, rows: list[int]) -> Any:
        """The batch of these rows where the data set has it, which need not be the device."""
        if hasattr(self._dataset, "__getitems__"):
            return self._collate(self._dataset.__getitems__(rows))
        return self._collate([self._dataset[row] for row in rows])

    def in_tensors(self, cap: int = MEMORY_CAP, seconds: float = LOAD_S) -> Samples:
        """The same samples as tensors where that is safe, or these.

        Safe: items are tensors of equal shapes that do not change from one fetch to the next, and
        a batch is its samples' own batches one under another (no padding to the longest, no
        mixing); seen on a spread of items fetched twice. Affordable: `cap` bytes, `seconds`.
        """
        count = len(self)
        spread = torch.linspace(0, count - 1, min(count, TWICE)).long().unique().tolist()
        began = time.perf_counter()
        together = self.collated(spread)
        each = (time.perf_counter() - began) / len(spread)
        if not self._stacked(together, len(spread)) or each * count > seconds:
            return self
        if cap < count * sum(t[0].numel() * t.element_size() for t in leaves(together)):
            return self
        for place, row in enumerate(spread):
            alone = self.collated([row])
            rows = map_tensors(lambda t, at=place: t[at : at + 1], together)  # type: ignore[misc]
            if not same(alone, rows):
                return self
        chunks = []
        for start in range(0, count, CHUNK):
            rows_here = list(range(start, min(start + CHUNK, count)))
            chunk = self.collated(rows_here)
            if not self._stacked(chunk, len(rows_here)) or not _alike(chunk, together):
                return self
            chunks.append(chunk)
        joined = iter(
            [torch.cat(parts) for parts in zip(*(leaves(c) for c in chunks), strict=True)]
        )
        return Tensors(map_tensors(lambda _: next(joined), together), self._target)

    @staticmethod
    def _stacked(batch: Any, count: int) -> bool:
        """Whether the batch is a tree of nothing but tensors of `count` rows."""
        return isinstance(batch, torch.Tensor | tuple | list | Mapping) and all(
            isinstance(t, torch.Tensor) and t.ndim and len(t) == count for t in leaves(batch)
        )


@final
class Part(Samples):
    """Some rows of other samples, under numbers of their own from 0 on."""

    def __init__(self, whole: Samples, rows: torch.Tensor) -> None:
        """`rows` (int64) are those of `whole`."""
        self._whole, self._rows = whole, rows.to(whole.device)
        self.device, self.in_memory = whole.device, whole.in_memory

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, rows: torch.Tensor) -> Any:
        """The whole's batch of these rows."""
        return self._whole.batch(self._rows[rows])

    def bytes_each(self) -> int:
        """As the whole's."""
        return self._whole.bytes_each()


def _has_room(tree: Any, device: torch.device) -> bool:
    """Whether the tensors take no more than a quarter of what is free on the device."""
    if device.type != "cuda":
        return True
    size = sum(int(t.nbytes) for t in leaves(tree))
    return size <= int(torch.cuda.mem_get_info(device)[0]) / 4


def _alike(a: Any, b: Any) -> bool:
    """Whether rows of the two trees have the same shapes and dtypes."""
    return [(t.shape[1:], t.dtype) for t in leaves(a)] == [
        (t.shape[1:], t.dtype) for t in leaves(b)
    ]
