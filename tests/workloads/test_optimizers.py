"""An optimizer built again on a copy: the same class, groups, settings and steps."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from batchlab.spec import UserError
from batchlab.workloads.optimizers import (
    adaptive,
    base_rate,
    describe,
    rebuild,
    set_option,
    set_rate,
)
from batchlab.workloads.seeding import forked
from tests import own

Make = Callable[[nn.Module], torch.optim.Optimizer]


class Own(torch.optim.SGD):
    """A class of the user's own, with an argument of its own."""

    def __init__(self, params: Any, lr: float, extra: int) -> None:
        super().__init__(params, lr=lr)
        self.defaults["extra"] = extra
        for group in self.param_groups:
            group.setdefault("extra", extra)


class Closed(torch.optim.SGD):
    """One that is built from something else."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model.parameters(), lr=0.1)


def grouped(model: nn.Module) -> torch.optim.Optimizer:
    first, second = model[0], model[2]  # type: ignore[index]
    return torch.optim.AdamW(
        [
            {"params": first.parameters(), "lr": 0.02, "weight_decay": 0.0},
            {"params": second.parameters(), "betas": (0.8, 0.95)},
        ],
        lr=0.01,
        weight_decay=0.3,
    )


MAKES: dict[str, Make] = {
    "sgd": lambda m: torch.optim.SGD(
        m.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01
    ),
    "adam": lambda m: torch.optim.Adam(m.parameters(), lr=0.01, betas=(0.8, 0.9), amsgrad=True),
    "groups": grouped,
    "rmsprop": lambda m: torch.optim.RMSprop(m.parameters(), lr=0.01, alpha=0.9, centered=True),
    "own": lambda m: Own(m.parameters(), lr=0.1, extra=3),
    "tensor": lambda m: torch.optim.Adam(m.parameters(), lr=torch.tensor(0.01)),
}


def after_steps(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    x, y = own.tensors()
    for _ in range(3):
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return [p.detach() for p in model.parameters()]


@pytest.mark.parametrize("name", list(MAKES))
def test_the_copy_steps_as_the_original(name: str) -> None:
    model, copy = own.mlp(), own.mlp()
    optimizer = MAKES[name](model)
    again = rebuild(optimizer, model, copy)
    assert type(again) is type(optimizer)
    assert len(again.param_groups) == len(optimizer.param_groups)
    assert describe(again) == describe(optimizer)
    before = [p.detach().clone() for p in model.parameters()]
    mine = after_steps(copy, again)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert not torch.equal(mine[0], before[0])
    for a, b in zip(mine, after_steps(model, optimizer), strict=True):
        assert torch.equal(a, b)


def test_one_that_cannot_be_built_again() -> None:
    model = own.mlp()
    with pytest.raises(UserError, match=r"optimizer: Closed cannot be built again"):
        rebuild(Closed(model), model, own.mlp())


def test_groups_keep_the_ratio_of_their_rates() -> None:
    optimizer = grouped(own.mlp())
    set_rate(optimizer, 0.2)
    assert base_rate(optimizer) == 0.2
    assert [g["lr"] for g in optimizer.param_groups] == [0.2, pytest.approx(0.1)]


@pytest.mark.parametrize(
    ("name", "is_adaptive"),
    [
        ("SGD", False),
        ("ASGD", False),
        *((name, True) for name in ("Adam", "AdamW", "NAdam", "RAdam", "Adamax", "RMSprop")),
        *((name, True) for name in ("Adagrad", "Adadelta", "Adafactor", "Rprop")),
    ],
)
def test_which_are_adaptive(name: str, is_adaptive: bool) -> None:
    kind = getattr(torch.optim, name)
    assert adaptive(kind(nn.Linear(2, 1).parameters(), lr=0.1)) == is_adaptive


def test_options() -> None:
    optimizer = grouped(own.mlp())
    set_option(optimizer, "beta2", 0.5)
    set_option(optimizer, "weight_decay", 0.1)
    assert [g["betas"] for g in optimizer.param_groups] == [(0.9, 0.5), (0.8, 0.5)]
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.1, 0.1]
    for name in ("momentum", "params"):
        with pytest.raises(UserError, match=rf"AdamW has no option '{name}'; choose from amsgrad"):
            set_option(optimizer, name, 0.5)
    with pytest.raises(UserError, match=r"SGD has no option 'beta2'"):
        set_option(own.sgd(own.mlp()), "beta2", 0.5)


def test_generators_are_put_back() -> None:
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    with forked(torch.device("cpu")):
        torch.rand(5)
    assert torch.equal(torch.rand(2), expected)
