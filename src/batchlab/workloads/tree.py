"""Batches as trees: tensors in tuples, lists and mappings, to any depth."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch


def map_tensors(change: Callable[[torch.Tensor], torch.Tensor], tree: Any) -> Any:
    """The tree with every tensor changed; mappings come back as dicts, other leaves as they are."""
    if isinstance(tree, torch.Tensor):
        return change(tree)
    if isinstance(tree, Mapping):
        return {key: map_tensors(change, value) for key, value in tree.items()}
    if isinstance(tree, tuple | list):
        parts = [map_tensors(change, value) for value in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    return tree


def leaves(tree: Any) -> Iterator[Any]:
    """Every leaf, a tensor or not."""
    if isinstance(tree, Mapping):
        tree = list(tree.values())
    if isinstance(tree, tuple | list):
        for value in tree:
            yield from leaves(value)
    else:
        yield tree


def move(tree: Any, device: torch.device) -> Any:
    """The batch on `device`; a batch of a class of its own is asked to move itself."""
    if not isinstance(tree, torch.Tensor | Mapping | tuple | list) and hasattr(tree, "to"):
        return tree.to(device)
    return map_tensors(lambda t: t.to(device, non_blocking=True), tree)


def same(a: Any, b: Any) -> bool:
    """Whether two trees have the same tensors, to the bit, and nothing but tensors."""
    mine, others = list(leaves(a)), list(leaves(b))
    return len(mine) == len(others) and all(
        isinstance(x, torch.Tensor)
        and isinstance(y, torch.Tensor)
        and x.dtype == y.dtype
        and torch.equal(x, y)
        for x, y in zip(mine, others, strict=True)
    )
