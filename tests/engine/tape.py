"""What a CUDA graph is, on a CPU: tensor operations without the Python that called for them.

Nothing that Python does takes place in a replay: no number that it changes is seen, no tensor that
it puts in the place of another. As in a capture, recording leaves all tensors as they were, and
asking for a tensor's value fails.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

SYNCHRONISING = {"aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero"}


class Tape:
    """A recorder that counts what it has recorded and replayed."""

    def __init__(self) -> None:
        self.recorded = self.replays = 0

    def run(self, work: Callable[[], None]) -> None:
        work()

    def record(self, work: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        operations = _Operations()
        try:
            with operations:
                result = work()
        finally:
            operations.undo()
        self.recorded += 1

        def replay() -> torch.Tensor:
            self.replays += 1
            operations.again()
            return result

        return replay


class _Operations(TorchDispatchMode):
    """Every operation with the tensors it had, which stay where they are."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._calls: list[tuple[Any, Any, Any, list[torch.Tensor]]] = []
        self._made: set[int] = set()  # places in memory
        self._before: dict[int, tuple[torch.Tensor, Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.name().split(".")[0] in SYNCHRONISING:
            raise RuntimeError("operation not permitted when recording")
        for tensor in _tensors((args, kwargs)):
            place = _place(tensor)
            if place not in self._made and place not in self._before:
                self._before[place] = tensor, tensor.untyped_storage().clone()
        out = func(*args, **(kwargs or {}))
        made = _tensors(out)
        self._made |= {_place(t) for t in made} - self._before.keys()
        self._calls.append((func, args, kwargs or {}, made))
        return out

    @torch.no_grad()
    def again(self) -> None:
        for func, args, kwargs, made in self._calls:
            for there, new in zip(made, _tensors(func(*args, **kwargs)), strict=True):
                if _place(new) != _place(there):
                    there.copy_(new)

    def undo(self) -> None:
        for tensor, storage in self._before.values():
            tensor.untyped_storage().copy_(storage)


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _place(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
