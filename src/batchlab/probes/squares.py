"""Norms of each example's own gradient, from what a backward pass has at hand.

With inputs a and output gradients d of a layer, an example's weight gradient is sum_t d_t a_t^T
over its T positions (tokens, pixels), so that

    |g|^2 = sum_{t,u} (a_t . a_u)(d_t . d_u)

which for one position is |a|^2 |d|^2 (Goodfellow, arXiv 1510.01799, 2015). No gradient of an
example is formed where the two T x T Gram matrices are cheaper. All are exact. `d` is the gradient
of whatever went backward, its scaling included. Half precision is widened to single first.

Shapes: B examples, T positions, I inputs, O outputs or channels, V rows of a table, W a whole
weight or bias of one example, flattened.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

WIDE = (torch.float32, torch.float64)
AT_ONCE = 2**22  # values of formed gradients that may be in memory at a time


def wide(x: Tensor) -> Tensor:
    """At least single precision."""
    return x if x.dtype in WIDE else x.float()


def entries(gradient: Tensor, root: Tensor | None = None) -> Tensor:
    """What a gradient has, times `root` there, in single or double.

    Of a sparse one the rows that are stored, those of one index added up.
    """
    if gradient.is_sparse:
        gradient = gradient.coalesce()
        root = None if root is None else root[tuple(gradient.indices().unbind())]
        gradient = gradient.values()
    return wide(gradient if root is None else gradient * root)


def norms(x_BT: Tensor) -> Tensor:
    """Euclidean norm of each row, over all dimensions but the first, in single or double (B)."""
    x = x_BT if x_BT.ndim == 2 else x_BT.flatten(1)
    if x.dtype in WIDE:
        told: Tensor = torch.linalg.vector_norm(x, dim=1)
        return told
    narrow: Tensor = torch.linalg.vector_norm(x, dim=1, dtype=torch.float32)
    return narrow


def positions(x_BTO: Tensor) -> Tensor:
    """The dimensions between the first and the last as one, in single or double (B, T, O)."""
    return wide(x_BTO.flatten(1, -2))


def linear(a_BTI: Tensor, d_BTO: Tensor) -> Tensor:
    """|sum_t d_t a_t^T| of every example (B), the cheaper way."""
    t, i, o = a_BTI.shape[1], a_BTI.shape[2], d_BTO.shape[2]
    if t * (i + o) <= i * o:
        gram_BTT = torch.bmm(a_BTI, a_BTI.mT) * torch.bmm(d_BTO, d_BTO.mT)
        # Rounding may leave a sum that is zero a little below it.
        return gram_BTT.sum((1, 2)).clamp_min_(0).sqrt_()
    rows = max(1, AT_ONCE // (i * o))
    return torch.cat(
        [
            norms(torch.bmm(d.mT, a))
            for a, d in zip(a_BTI.split(rows), d_BTO.split(rows), strict=True)
        ]
    )


def bias(d_BTO: Tensor) -> Tensor:
    """|sum_t d_t| of every example (B)."""
    return norms(d_BTO.sum(1))


def gain(x_BTO: Tensor, d_BTO: Tensor) -> Tensor:
    """|sum_t d_t * x_t| of every example (B), x being what the gain multiplies."""
    return norms((x_BTO * d_BTO).sum(1))


def embedding(index_BT: Tensor, d_BTO: Tensor, padding: int | None) -> Tensor:
    """|g| of every example (B): positions with one index add up in its row first.

    The `padding` index has no gradient. Positions are sorted by index and runs of equal ones
    summed, which waits for no device and forms no table.
    """
    order_BT = index_BT.argsort(dim=1)
    sorted_BT = index_BT.gather(1, order_BT)
    run_BT = F.pad((sorted_BT[:, 1:] != sorted_BT[:, :-1]).long().cumsum(1), (1, 0))
    if padding is not None:
        d_BTO = d_BTO.masked_fill((index_BT == padding)[:, :, None], 0)
    place_BTO = order_BT.argsort(dim=1)
    run_of_BT = run_BT.gather(1, place_BTO)
    rows_BTO = torch.zeros_like(d_BTO).scatter_add_(
        1, run_of_BT[:, :, None].expand_as(d_BTO), d_BTO
    )
    return norms(rows_BTO)


def kernel_rows(
    x: Tensor,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
) -> Iterator[Tensor]:
    """What each row of a convolution's kernel sees at every output position (B G, T, I).

    x is (B, channels, height, width), padded; T runs over output pixels, I over a group's channels
    times the kernel's width, and groups stand as examples of their own. Only the width is copied
    out: rows of the kernel are views into that, so their gradients' squares add up at a third of
    the memory traffic that whole 3 x 3 patches take.
    """
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    seen = wide(x).unfold(3, reach[1], stride[1])[..., :: dilation[1]]  # (B, C, H, W out, width)
    seen = seen.permute(0, 1, 4, 2, 3).contiguous()
    across_GIHW = seen.view(len(x) * groups, -1, *seen.shape[3:])
    last = (x.shape[2] - reach[0]) // stride[0] * stride[0]
    for k in range(kernel[0]):
        first = k * dilation[0]
        row_GIHW = across_GIHW[:, :, first : first + last + 1 : stride[0]]
        yield row_GIHW.flatten(2).mT
