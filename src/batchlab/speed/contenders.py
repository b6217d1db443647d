"""Three programs that train one model: a naive script, an eager loop on tensors, the engine.

All take the same steps: of exactly B samples (what is left of an epoch when fewer remain is
dropped, or a mean over steps would be one over different steps), in a new order every epoch,
from the workload's initial point.

Reading the data is part of a step. The naive script's DataLoader collates every batch; for the two
others the stretch that is about to be trained on is laid out in the epoch's order as the engine
lays out a whole epoch, and that is timed with it, in proportion: only the rows of the stretch are
moved, and an order is drawn when an epoch begins.

Shapes: N training samples, B samples of a batch, I inputs.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from batchlab.engine.data import load
from batchlab.engine.draws import epoch_order, generator
from batchlab.engine.replicas import replicas
from batchlab.spec import Model, Phase, batch_slices
from batchlab.workloads import workload
from batchlab.workloads.base import Data
from batchlab.workloads.mlp import build

Batch = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """What is trained: a workload's data on the device, the model's shape, the learning rate."""

    name: str
    data: Data
    model: Model
    learning_rate: float

    @classmethod
    def of(cls, name: str, data_dir: Path | None, device: str) -> "Case":
        """A workload's own; raises `UserError` where its data cannot be had."""
        protocol = workload(name).protocol
        data = load(name, data_dir, device, "float32")
        return cls(name, data, protocol.model, protocol.learning_rate)

    @property
    def device(self) -> torch.device:
        """Where the data lie and the model is trained."""
        return self.data.train_x.device

    @property
    def widths(self) -> tuple[int, ...]:
        """Units from the inputs to the classes."""
        return (self.data.train_x.shape[1], *self.model.hidden, self.data.classes)

    def phase(self, batch_size: int) -> Phase:
        """Plain SGD at this batch size."""
        return Phase(batch_size=batch_size, learning_rate=self.learning_rate, steps=1)

    def fresh(self) -> nn.Module:
        """The model at its initial point."""
        inputs, *_, classes = self.widths
        return build(self.model, inputs, classes, generator(0, "init")).to(self.device)


class Shuffled:
    """The training data in the order of one epoch after another, laid out as they are taken."""

    def __init__(self, data: Data) -> None:
        self._data = data
        # Copies, so that no page of them is touched for the first time while a clock runs.
        self._x_NI, self._y_N = data.train_x.clone(), data.train_y.clone()
        self._order_N = torch.empty(0, dtype=torch.int64)
        self._epoch = self._next = 0

    def take(self, steps: int, size: int) -> Iterator[Batch]:
        """The rows of so many batches, in stretches that end where an epoch does."""
        while steps:
            if len(self._order_N) - self._next < size:
                order_N = epoch_order(0, self._epoch, len(self._y_N))
                self._order_N = order_N.to(self._y_N.device)
                self._epoch, self._next = self._epoch + 1, 0
            count = min(steps, (len(self._order_N) - self._next) // size)
            rows = slice(self._next, self._next + count * size)
            for source, here in ((self._data.train_x, self._x_NI), (self._data.train_y, self._y_N)):
                torch.index_select(source, 0, self._order_N[rows], out=here[rows])
            yield self._x_NI[rows], self._y_N[rows]
            steps, self._next = steps - count, rows.stop


class Contender(ABC):
    """A program that trains the case's model by the phase's batch size and optimizer."""

    model: nn.Module

    @abstractmethod
    def start(self) -> None:
        """Go back to the initial point; a round begins so, and this is not timed."""

    @abstractmethod
    def take(self, steps: int) -> None:
        """Train for so many steps, the data's part in them included."""


@final
class Naive(Contender):
    """What the author of an article would write: DataLoader, optimizer, a running loss."""

    def __init__(self, case: Case, phase: Phase) -> None:
        self._case, self._phase = case, phase
        self._batches = self._endless()

    def _endless(self) -> Iterator[Batch]:
        """Epoch after epoch; it goes on between rounds, so that an epoch's start counts once."""
        dataset = TensorDataset(self._case.data.train_x.cpu(), self._case.data.train_y.cpu())
        loader = DataLoader(
            dataset, batch_size=self._phase.batch_size, shuffle=True, drop_last=True
        )
        while True:
            yield from loader

    def start(self) -> None:
        """A new model, optimizer and running loss."""
        self.running_loss = 0.0
        self.model = self._case.fresh()
        self._optimizer = plain_optimizer(self.model, self._phase)

    def take(self, steps: int) -> None:
        """The loop of every tutorial."""
        device = self._case.device
        for _ in range(steps):
            inputs, labels = next(self._batches)
            inputs, labels = inputs.to(device), labels.to(device)
            self._optimizer.zero_grad()
            loss = F.cross_entropy(self.model(inputs), labels)
            loss.backward()
            self._optimizer.step()
            self.running_loss += loss.item()


@final
class Eager(Contender):
    """Autograd and torch.optim on slices of shuffled tensors; no DataLoader, no `item()`."""

    def __init__(self, case: Case, phase: Phase, shuffled: Shuffled) -> None:
        self._case, self._phase, self._shuffled = case, phase, shuffled

    def start(self) -> None:
        """A new model and optimizer."""
        self.model = self._case.fresh()
        self._optimizer = plain_optimizer(self.model, self._phase)

    def take(self, steps: int) -> None:
        """As plain as it is without a DataLoader."""
        size = self._phase.batch_size
        for x_NI, y_N in self._shuffled.take(steps, size):
            for rows in batch_slices(len(y_N), size):
                self._optimizer.zero_grad()
                F.cross_entropy(self.model(x_NI[rows]), y_N[rows]).backward()
                self._optimizer.step()


@final
class Batchlab(Contender):
    """The engine's steps of the phase, asked for divergence as often as training asks."""

    def __init__(self, case: Case, phase: Phase, shuffled: Shuffled) -> None:
        self._case, self._phase, self._shuffled = case, phase, shuffled

    def start(self) -> None:
        """A new model and what steps it."""
        self.model = self._case.fresh()
        self._replicas = replicas([self.model], [self._phase], "float32")

    def take(self, steps: int) -> None:
        """As the training loop does, without its measurements."""
        size = self._phase.batch_size
        for x_NI, y_N in self._shuffled.take(steps, size):
            for rows in batch_slices(len(y_N), self._replicas.stretch * size):
                self._replicas.steps(x_NI[None, rows], y_N[None, rows], size)
                self._replicas.first_diverged()
        self._replicas.settle()


def plain_optimizer(model: nn.Module, phase: Phase) -> torch.optim.Optimizer:
    """The optimizer as it is written without a thought of speed: PyTorch's defaults."""
    chosen, rate = phase.optimizer, phase.learning_rate
    decay = chosen.weight_decay
    if chosen.name == "sgd":
        return torch.optim.SGD(
            model.parameters(), lr=rate, momentum=chosen.momentum, weight_decay=decay
        )
    adam = torch.optim.Adam if chosen.name == "adam" else torch.optim.AdamW
    betas = (chosen.beta1, chosen.beta2)
    return adam(model.parameters(), lr=rate, betas=betas, weight_decay=decay)
