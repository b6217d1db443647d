"""Hooks on a user's model or its parameters, which are there only while they are wanted."""

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Protocol, Self

from torch import Tensor, nn

from batchlab.spec import UserError

ForwardHook = Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]
_NO_HANDLE = -1  # handles are numbered from 0


class Removable(Protocol):
    """What takes a hook off again."""

    def remove(self) -> None:
        """Take it off."""


class Switched:
    """A forward hook on a module that is put on and taken off often.

    Making a handle anew takes ten times as long as the entry in the module's dictionary.
    """

    __slots__ = ("_hook", "_hooks", "_key")

    def __init__(self, module: nn.Module, hook: ForwardHook) -> None:
        """It is off."""
        handle = module.register_forward_hook(hook)
        self._hooks, self._hook, self._key = module._forward_hooks, hook, handle.id
        handle.remove()

    def put_on(self) -> None:
        """Behind the hooks that are there."""
        self._hooks[self._key] = self._hook

    def remove(self) -> None:
        """Take it off, if it is on."""
        self._hooks.pop(self._key, None)


class Hooked(ABC):
    """Has hooks on something. Abstract: what they are is the kind's own."""

    def __init__(self) -> None:
        self._handles: list[Removable] = []

    @property
    def active(self) -> bool:
        """Whether the hooks are there; set it between steps."""
        return bool(self._handles)

    @active.setter
    def active(self, wanted: bool) -> None:
        if wanted and not self._handles:
            self._handles.extend(self._attach())
        elif not wanted:
            while self._handles:
                self._handles.pop().remove()

    @abstractmethod
    def _attach(self) -> Iterable[Removable]:
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


def on_gradient(z: Tensor, hook: Callable[[Tensor], None]) -> None:
    """`z.register_hook(hook)` for good: no handle is made, which takes longer than all the rest."""
    node = z.grad_fn
    if node is None or z._backward_hooks is not None or not hasattr(node, "_register_hook_dict"):
        z.register_hook(hook)
        return
    z._backward_hooks = OrderedDict({_NO_HANDLE: hook})
    node._register_hook_dict(z)  # what `register_hook` does itself


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by name; `UserError` where there are none."""
    told = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not told:
        raise UserError("the model has no parameter that is trained")
    return told
