"""The loss and the metric of a batch, whatever the batch and the model are.

A batch that is a pair (or more) is inputs and, last, the target: the functions get the model's
output and the target. Any other batch, and any function whose first parameter is called `model`,
gets the model and the batch. Without a loss, the model's own is taken: `model(**batch).loss`.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from batchlab.spec import UserError


@dataclass(frozen=True, slots=True)
class Metric:
    """What the user judges a model by.

    `function` is called as the loss is; it returns the batch's mean, or with `reduction="count"`
    the number of samples that are right, which are then divided by all of them.
    """

    function: Callable[[Any, Any], Any]
    better: Literal["higher", "lower"]
    reduction: Literal["mean", "count"] = "mean"
    name: str = "metric"


def correct(output_NC: torch.Tensor, y_N: torch.Tensor) -> torch.Tensor:
    """How many of the N samples have their largest output at their label."""
    return (output_NC.argmax(1) == y_N).sum()


ACCURACY = Metric(correct, better="higher", reduction="count", name="accuracy")


class Measured(NamedTuple):
    """Of one batch, on the device: the mean loss, and the metric summed over its weight."""

    loss: torch.Tensor
    metric: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class Objective:
    """Loss, metric and what the loss is a mean over (samples, where `weight` is not given)."""

    loss: Callable[[Any, Any], Any] | None = None
    metric: Metric | None = None
    weight: Callable[[Any], Any] | None = None

    def __call__(self, model: Callable[..., Any], batch: Any) -> torch.Tensor:
        """The batch's mean loss as a scalar with a gradient; whatever else is a `UserError`."""
        return self._loss(model, batch)[0]

    def measure(self, model: Callable[..., Any], batch: Any, weight: float) -> Measured:
        """Loss and metric, of one forward pass where both take the model's output."""
        loss, output = self._loss(model, batch)
        metric = self.metric
        if metric is None:
            return Measured(loss, None)
        if _pair(batch) and not _takes_model(metric.function):
            if output is None:
                output = model(*batch[:-1])
            value = metric.function(output, batch[-1])
        else:
            value = metric.function(model, batch)
        told = torch.as_tensor(value, device=loss.device).float()
        if told.numel() != 1:
            raise UserError(
                f"metric: returned the shape {tuple(told.shape)}; must be one number a batch"
            )
        return Measured(loss, told.reshape(()) * (1 if metric.reduction == "count" else weight))

    def share(self, batch: Any, samples: int) -> Any:
        """What the loss of the batch is a mean over: a number, or a tensor on the device."""
        return float(samples) if self.weight is None else self.weight(batch)

    def _loss(self, model: Callable[..., Any], batch: Any) -> tuple[torch.Tensor, Any]:
        """The loss, and the model's output where it was computed apart."""
        if self.loss is None:
            return _scalar(_own_loss(model, batch)), None
        if _pair(batch) and not _takes_model(self.loss):
            output = model(*batch[:-1])
            return _scalar(self.loss(output, batch[-1])), output
        return _scalar(self.loss(model, batch)), None


def shares(weights: Sequence[Any]) -> list[Any]:
    """Of the whole, of parts of these weights, numbers or tensors; 0 of a whole that has none."""
    total = sum(weights)
    told = [w / total if isinstance(total, torch.Tensor) or total else 0.0 for w in weights]
    return [torch.where(s > 0, s, 0.0) if isinstance(s, torch.Tensor) else s for s in told]


def weighed(value: torch.Tensor, share: Any) -> torch.Tensor:
    """value * share, and 0 where the share is: the mean loss of nothing is nan, as its gradient is.

    Without waiting for the device.
    """
    if isinstance(share, torch.Tensor):
        return torch.where(share > 0, value * share, 0.0)
    return value * share if share else torch.zeros_like(value)


def _pair(batch: Any) -> bool:
    return isinstance(batch, tuple | list) and len(batch) >= 2


def _takes_model(function: Callable[..., Any]) -> bool:
    if isinstance(function, nn.Module):
        return False
    try:
        return next(iter(inspect.signature(function).parameters), "") == "model"
    except (TypeError, ValueError):  # functions in C have no signature
        return False


def _own_loss(model: Callable[..., Any], batch: Any) -> Any:
    """Of a model that computes it, as Hugging Face's do; no import of theirs."""
    if not isinstance(batch, Mapping):
        raise UserError(
            "loss: none given; must be a callable (model output, target) -> mean loss, or "
            "(model, batch) -> mean loss, or the model must return .loss for a dict batch"
        )
    output = model(**batch)
    loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if loss is None:
        raise UserError(
            f"loss: none given, and the model's output ({type(output).__name__}) has no .loss; "
            f"give labels in the batch, or a callable (model, batch) -> mean loss"
        )
    return loss


def _scalar(loss: Any) -> torch.Tensor:
    if not isinstance(loss, torch.Tensor):
        raise UserError(
            f"loss: returned {type(loss).__name__}; must be a scalar tensor with a gradient "
            f"(no .item())"
        )
    if loss.numel() != 1:
        raise UserError(
            f"loss: returned the shape {tuple(loss.shape)}; must be the batch's mean, a scalar "
            f'(reduction="mean")'
        )
    return loss.reshape(())
