"""Hooks on a user's model or its parameters, which are there only while they are wanted."""

from collections.abc import Callable, Iterable

from torch import nn
from torch.utils.hooks import RemovableHandle

from batchlab.spec import UserError


class Hooks:
    """Put on by `attach`, which gives their handles; `on` says whether they are there."""

    def __init__(self, attach: Callable[[], Iterable[RemovableHandle]]) -> None:
        self._attach = attach
        self._handles: list[RemovableHandle] = []

    @property
    def on(self) -> bool:
        """Whether they are there; set it to put them on or take them off."""
        return bool(self._handles)

    @on.setter
    def on(self, wanted: bool) -> None:
        if wanted and not self._handles:
            self._handles = list(self._attach())
        elif not wanted:
            while self._handles:
                self._handles.pop().remove()


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by name; `UserError` where there are none."""
    told = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not told:
        raise UserError("the model has no parameter that is trained")
    return told
