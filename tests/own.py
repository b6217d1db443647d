"""Small workloads of a user's own, in every form that they come in."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from batchlab.workloads.objective import ACCURACY
from batchlab.workloads.prepare import prepare
from batchlab.workloads.prepared import Prepared
from batchlab.workloads.user import UserWorkload

SAMPLES, INPUTS, CLASSES = 40, 6, 3


def tensors(count: int = SAMPLES, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(count, INPUTS, generator=g)
    return x, (x[:, :CLASSES] + 0.3 * torch.randn(count, CLASSES, generator=g)).argmax(1)


def mlp(*between: nn.Module) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(INPUTS, 8), *between, nn.ReLU(), nn.Linear(8, CLASSES))


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


def workload(
    *between: nn.Module,
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] = sgd,
    **given: Any,
) -> UserWorkload:
    model = given.pop("model", None) or mlp(*between)
    parts: dict[str, Any] = {
        "model": model,
        "train": tensors(),
        "validation": tensors(20, seed=1),
        "optimizer": optimizer(model),
        "loss": F.cross_entropy,
        "batch_size": 8,
        "metric": ACCURACY,
    }
    return UserWorkload(**{**parts, **given})


def prepared(*between: nn.Module, **given: Any) -> Prepared:
    return prepare(workload(*between, **given))


class Rows(Dataset[Any]):
    """The same samples one by one; `noise` is added at every fetch."""

    def __init__(self, noise: float = 0.0) -> None:
        self._x, self._y = tensors()
        self._noise = noise

    def __len__(self) -> int:
        return len(self._x)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = self._x[row]
        return (x + self._noise * torch.randn(INPUTS) if self._noise else x), self._y[row]


class Words(Dataset[Any]):
    """Sequences of 2 to 5 words of 11, as lists of token numbers."""

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, row: int) -> list[int]:
        return [(row * 7 + place * 3) % 10 + 1 for place in range(2 + row % 4)]


def padded(items: list[list[int]]) -> dict[str, torch.Tensor]:
    """Padded to the longest; labels are -100 where there is no word."""
    longest = max(len(item) for item in items)
    ids = torch.tensor([item + [0] * (longest - len(item)) for item in items])
    return {"input_ids": ids, "labels": ids.where(ids > 0, -100)}


def masked(items: list[list[int]]) -> dict[str, torch.Tensor]:
    """As `padded`; of every other sample no word counts."""
    batch = padded(items)
    batch["labels"][batch["input_ids"][:, 0] % 2 == 0] = -100
    return batch


class Speaker(nn.Module):
    """A model as Hugging Face's are: called with a batch's fields, returns an object with a loss.

    Its loss is a mean over words.
    """

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.embed, self.out = nn.Embedding(11, 6), nn.Linear(6, 11)

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> SimpleNamespace:
        logits = self.out(self.embed(input_ids))
        return SimpleNamespace(loss=F.cross_entropy(logits.flatten(0, 1), labels.flatten()))
