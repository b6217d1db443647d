"""Hooks on a user's model or its parameters, which are there only while they are wanted."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Self

from torch import nn
from torch.utils.hooks import RemovableHandle

from batchlab.spec import UserError


class Hooked(ABC):
    """Has hooks on something. Abstract: what they are is the kind's own."""

    def __init__(self) -> None:
        self._handles: list[RemovableHandle] = []

    @property
    def active(self) -> bool:
        """Whether the hooks are there; set it between steps."""
        return bool(self._handles)

    @active.setter
    def active(self, wanted: bool) -> None:
        if wanted and not self._handles:
            self._handles = list(self._attach())
        elif not wanted:
            while self._handles:
                self._handles.pop().remove()

    @abstractmethod
    def _attach(self) -> Iterable[RemovableHandle]:
        """Put them on."""


class Gatherer(Hooked):
    """Gathers what its hooks see in a step until that is taken; takes them off after a `with`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Take the hooks off the model."""
        self.active = False
        self.discard()

    @abstractmethod
    def discard(self) -> None:
        """Forget what was seen since the last time that it was taken."""


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by name; `UserError` where there are none."""
    told = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not told:
        raise UserError("the model has no parameter that is trained")
    return told
