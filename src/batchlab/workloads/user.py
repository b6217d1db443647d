"""What a user brings: a model, data, a loss, an optimizer and the present batch size."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from batchlab.workloads.objective import Metric


@dataclass(frozen=True, slots=True, eq=False)  # tensors have no one truth value to compare by
class UserWorkload:
    """A training job, as a factory returns it. It is checked when it is prepared, not here.

    `train`, `validation`: a tuple of tensors (x, y), a dict of tensors, a map-style `Dataset`, or
    a sized `DataLoader`, whose data set and `collate_fn` are used and whose batch size is replaced.
    `loss`: (model output, target) -> the batch's mean, a scalar; or (model, batch) -> the same, for
    dict batches and where the first parameter is called `model`. None: the model's own, `.loss` of
    what `model(**batch)` returns.
    `optimizer`: on the model's parameters; its class and every group's settings are used.
    `batch_size`: the present setting; None takes the training `DataLoader`'s.
    `metric`: what the model is judged by; None: the loss.
    `weight`: batch -> what its loss is a mean over, where that is not the samples (tokens, say).
    `before_step`: called with the model between backward pass and update, to clip gradients, say.
    `target`: the metric's (or the loss's) value on the validation data that training is for.
    """

    model: nn.Module
    train: Any
    validation: Any
    optimizer: torch.optim.Optimizer
    loss: Callable[[Any, Any], Any] | None = None
    batch_size: int | None = None
    metric: Metric | None = None
    weight: Callable[[Any], Any] | None = None
    before_step: Callable[[nn.Module], object] | None = None
    target: float | None = None
    name: str = "own"
