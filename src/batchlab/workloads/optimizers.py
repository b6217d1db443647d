"""A user's optimizer: its class and settings read, and built again on a copy of the model."""

import inspect
from typing import Any

import torch
from torch import nn

from batchlab.spec import UserError


def check(optimizer: Any, model: nn.Module) -> None:
    """Raise `UserError` where the optimizer is none, or steps what is not the model's."""
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise UserError(
            f"optimizer: got {type(optimizer).__name__}; must be a torch.optim.Optimizer built on "
            f"the model's parameters, like torch.optim.SGD(model.parameters(), lr=0.1)"
        )
    own = {id(p) for p in model.parameters()}
    foreign = sum(id(p) not in own for group in optimizer.param_groups for p in group["params"])
    if foreign:
        raise UserError(
            f"optimizer: {foreign} of its parameters are not the model's; build it on the "
            f"parameters of the model that is returned with it"
        )
    step = inspect.signature(type(optimizer).step).parameters
    if "closure" in step and step["closure"].default is inspect.Parameter.empty:
        raise UserError(
            f"optimizer: {type(optimizer).__name__} evaluates the loss several times a step; "
            f"must be one that steps on a given gradient, like SGD or Adam"
        )


def rebuild(
    optimizer: torch.optim.Optimizer, model: nn.Module, copy: nn.Module
) -> torch.optim.Optimizer:
    """An optimizer of the same class on `copy`, group by group, with every group's settings.

    `optimizer` is on the parameters of `model`, of which `copy` has the same names. State is not
    taken along. Raises `UserError` where the class cannot be built from groups and settings.
    """
    names = {id(p): name for name, p in model.named_parameters()}
    mine = dict(copy.named_parameters())
    groups = [
        {
            **{k: _apart(v) for k, v in group.items() if k not in ("params", "param_names")},
            "params": [mine[names[id(p)]] for p in group["params"]],
        }
        for group in optimizer.param_groups
    ]
    kind = type(optimizer)
    known = inspect.signature(kind).parameters
    settings = {k: _apart(v) for k, v in optimizer.defaults.items() if k in known}
    try:
        return kind(groups, **settings)
    except Exception as error:
        raise UserError(
            f"optimizer: {kind.__name__} cannot be built again from its groups and settings "
            f"({type(error).__name__}: {error}); must be buildable as "
            f"{kind.__name__}(groups, {', '.join(settings)})"
        ) from None


def base_rate(optimizer: torch.optim.Optimizer) -> float:
    """The learning rate of the first group, which stands for the optimizer's."""
    return float(optimizer.param_groups[0]["lr"])


def adaptive(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a step's length does not follow the gradient's, as with Adam.

    Told by its settings, as any class may be one: betas of Adam and its kin, eps of whatever
    divides by a gradient's size, etas of Rprop.
    """
    return not {"betas", "eps", "etas"}.isdisjoint(optimizer.param_groups[0])


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the first group's learning rate; the other groups keep their ratios to it."""
    before = base_rate(optimizer)
    for group in optimizer.param_groups:
        group["lr"] = rate * (float(group["lr"]) / before) if before else rate


def set_option(optimizer: torch.optim.Optimizer, name: str, value: Any) -> None:
    """Set an option in every group; `beta1` and `beta2` are places of `betas`.

    Raises `UserError` where the optimizer has no such option.
    """
    for group in optimizer.param_groups:
        if name in ("beta1", "beta2") and "betas" in group:
            first, second = group["betas"]
            group["betas"] = (value, second) if name == "beta1" else (first, value)
        elif name in group and name != "params":
            group[name] = value
        else:
            options = ", ".join(sorted(k for k in group if k != "params"))
            raise UserError(
                f"{type(optimizer).__name__} has no option {name!r}; choose from {options}"
            )


def describe(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The class's name and the first group's settings, for a report."""
    first = optimizer.param_groups[0]
    return {"name": type(optimizer).__name__} | {
        k: _plain(v) for k, v in first.items() if k not in ("params", "param_names")
    }


def _apart(value: Any) -> Any:
    """The setting, sharing nothing with the original's (a learning rate may be a tensor)."""
    return value.detach().clone() if isinstance(value, torch.Tensor) else value


def _plain(value: Any) -> Any:
    """A number where the setting is a tensor of one."""
    return float(value) if isinstance(value, torch.Tensor) and value.numel() == 1 else value
