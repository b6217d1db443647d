"""Products of a loss's Hessian with vectors, exact where autograd can differentiate twice.

Double backward (Pearlmutter, Neural Computation 6, 1994): the gradient with its graph, then one
more backward pass a vector, each about two gradients' work. Attention is told to use its plain
kernel and, where that does not suffice, recurrent layers not to use cuDNN's: their own gradients
have no derivative. Where another operation has none, central differences of gradients stand in, at
two gradients a vector:

    H v = (g(w + s v) - g(w - s v)) / (2 s),    s |v| = sqrt(eps) |w|,

with eps the precision of the numbers: right to about a thousandth in single precision.

Of a network of piecewise linear units autograd's Hessian is that between the kinks. What the kinks
add to the mean loss's curvature is not in it, nor is anything that a custom backward pass computes
with detached numbers.

Shapes: V vectors, P parameters; a vector is a tensor a parameter, in its shape.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

Loss = Callable[[], Tensor]
# Nodes that stand in a graph for a derivative that is not there. They need not be on the way to the
# parameters: a backward pass may go past them without an error, and without their part.
_MISSING = {"torch::autograd::Error", "torch::autograd::NotImplemented"}


def gradient(loss: Loss, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Of a scalar loss, detached; zeros where a parameter takes no part (P)."""
    return _filled(torch.autograd.grad(loss(), parameters, allow_unused=True), parameters)


def hessian_products(
    loss: Loss, parameters: Sequence[Tensor], vectors: Sequence[Sequence[Tensor]]
) -> tuple[list[list[Tensor]], bool]:
    """H v of every vector (V, P), and whether they are exact.

    `loss` computes the same scalar every time it is called (one that draws seeds itself). The
    parameters are changed and put back where differences are taken.
    """
    for cudnn in (True, False):
        with _differentiable(cudnn):
            told = _twice(loss, parameters, vectors)
        if told is not None:
            return told, True
    return [_difference(loss, parameters, vector) for vector in vectors], False


def _twice(
    loss: Loss, parameters: Sequence[Tensor], vectors: Sequence[Sequence[Tensor]]
) -> list[list[Tensor]] | None:
    """The products, or None where some operation's gradient has no derivative."""
    first = torch.autograd.grad(loss(), parameters, create_graph=True, allow_unused=True)
    if _MISSING & _nodes(first):
        return None
    # A gradient that is constant, or is not there, has no graph.
    curved = [k for k, g in enumerate(first) if g is not None and g.requires_grad]
    if not curved:
        return [[torch.zeros_like(p) for p in parameters] for _ in vectors]
    outputs = [first[k] for k in curved]
    return [
        _filled(
            torch.autograd.grad(
                outputs,
                parameters,
                [vector[k] for k in curved],
                retain_graph=place + 1 < len(vectors),
                allow_unused=True,
            ),
            parameters,
        )
        for place, vector in enumerate(vectors)
    ]


def _nodes(tensors: Sequence[Tensor | None]) -> set[str]:
    """Names of all operations in the graph of the tensors."""
    waiting = [t.grad_fn for t in tensors if t is not None and t.grad_fn is not None]
    seen = set(waiting)
    while waiting:
        following = [node for node, _ in waiting.pop().next_functions if node is not None]
        waiting += [node for node in dict.fromkeys(following) if node not in seen]
        seen.update(following)
    return {node.name() for node in seen}


@torch.no_grad()
def _difference(loss: Loss, parameters: Sequence[Tensor], vector: Sequence[Tensor]) -> list[Tensor]:
    kept = [p.detach().clone() for p in parameters]
    precision = max(torch.finfo(p.dtype).eps for p in parameters)
    size, length = _norm(kept), _norm(vector)
    one = torch.ones_like(length)
    step = precision**0.5 * torch.where(size > 0, size, one) / torch.where(length > 0, length, one)
    sides = []
    try:
        for sign in (1, -1):
            for p, w, v in zip(parameters, kept, vector, strict=True):
                p.copy_(w + sign * step.to(w.dtype) * v)
            with torch.enable_grad():
                sides.append(gradient(loss, parameters))
    finally:
        for p, w in zip(parameters, kept, strict=True):
            p.copy_(w)
    return [(a - b) / (2 * step.to(a.dtype)) for a, b in zip(*sides, strict=True)]


@contextmanager
def _differentiable(cudnn: bool) -> Iterator[None]:
    """Kernels whose gradients have a derivative; without cuDNN convolutions are slower."""
    before = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = before and cudnn
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.cudnn.enabled = before


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    told: Tensor = torch.linalg.vector_norm(
        torch.stack([torch.linalg.vector_norm(t) for t in tensors])
    )
    return told


def _filled(tensors: Sequence[Tensor | None], like: Sequence[Tensor]) -> list[Tensor]:
    return [
        torch.zeros_like(p) if t is None else t.detach() for t, p in zip(tensors, like, strict=True)
    ]
