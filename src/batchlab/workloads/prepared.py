"""A user's workload once it is checked: the data as samples, and copies to train.

Shapes: N samples, B of a batch.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from batchlab.spec import UserError
from batchlab.workloads import optimizers
from batchlab.workloads.objective import Objective
from batchlab.workloads.samples import Samples
from batchlab.workloads.seeding import seeded
from batchlab.workloads.user import UserWorkload

Factory = Callable[[], UserWorkload]


class Start(NamedTuple):
    """A model of one's own to train, and its optimizer."""

    model: nn.Module
    optimizer: torch.optim.Optimizer


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A workload that was checked; nothing that trains touches what the user gave.

    `random`: whether training draws (dropout, random transforms), and so must be seeded step by
    step. `batch_norm`: the names of the model's batch norm layers. `notes`: what the user should
    know, a line each.
    """

    given: UserWorkload
    train: Samples
    validation: Samples
    objective: Objective
    batch_size: int
    device: torch.device
    drop_last: bool
    random: bool
    batch_norm: tuple[str, ...]
    notes: tuple[str, ...]
    factory: Factory | None = None

    @property
    def name(self) -> str:
        """What the user calls it."""
        return self.given.name

    @property
    def learning_rate(self) -> float:
        """The present setting, of the first parameter group."""
        return optimizers.base_rate(self.given.optimizer)

    @property
    def parameters(self) -> int:
        """Numbers that are trained."""
        return sum(p.numel() for p in self.given.model.parameters() if p.requires_grad)

    def start(self, seed: int | None = None) -> Start:
        """A copy to train: of what the user gave, or with `seed` initialised afresh.

        A fresh one is the factory's under that seed; the data stay. Raises `UserError` where there
        is no factory, or it makes another model every time.
        """
        mine = self.given
        if seed is None:
            model = copy.deepcopy(mine.model).train()
            optimizer = optimizers.rebuild(mine.optimizer, mine.model, model)
            if mine.optimizer.state:
                optimizer.load_state_dict(copy.deepcopy(mine.optimizer.state_dict()))
            return Start(model, optimizer)
        if self.factory is None:
            raise UserError(
                f"{self.name}: a fresh initialisation needs a factory; "
                f"use prepare(workload, factory=...) or load_target"
            )
        with seeded(seed):
            fresh = self.factory()
        if shapes(fresh.model) != shapes(mine.model):
            raise UserError(
                f"{self.name}: the factory made a model of other parameters the second time; "
                f"must make the same model, but for its initialisation"
            )
        model = fresh.model.to(self.device).train()
        # The settings are the first call's, so that nothing but the initialisation differs.
        return Start(model, optimizers.rebuild(mine.optimizer, mine.model, model))


def shapes(model: nn.Module) -> dict[str, torch.Size]:
    """Of all parameters, by name."""
    return {name: parameter.shape for name, parameter in model.named_parameters()}
