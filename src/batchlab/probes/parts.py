"""What a noise scale is measured from: a batch in parts, their gradients' norms and the whole's.

A batch of n examples falls into K parts: its single examples, the chunks of gradient accumulation,
two halves, the ranks of data parallel training. Part k has b_k examples and the mean gradient g_k,
whose covariance is Sigma / b_k. The whole is gbar = sum_k w_k g_k with sum_k w_k = 1, and w_k is
b_k / n unless the training loop weighs otherwise (the mean of micro-batch means where the last
micro-batch is short). With tau = tr(Sigma) and r = sum_k w_k^2 / b_k

    E sum_k b_k |g_k|^2 = n |G|^2 + K tau,        E |gbar|^2 = |G|^2 + r tau

so that two norms give both unknowns, each without bias:

    tau   = (sum_k b_k |g_k|^2 - n |gbar|^2) / (K - n r)
    |G|^2 = |gbar|^2 - r tau

For K = n it is the estimate from per-example norms, for two sizes the one of McCandlish et al.
(2018, appendix A.1); r = 1/n for the usual weights. Drawn without replacement from N examples the
covariance of two parts is -Sigma / N (Sigma with N - 1 in the denominator), which leaves tau as it
is and adds tau / N to |G|^2: the square of the mean of those N (Cochran, Sampling Techniques, 1977,
section 2.6).

Shapes: P parameters, K parts, S steps.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from batchlab.spec import UserError

Floats = NDArray[np.float64]


class Parts(NamedTuple):
    """One step's batch. Norms, not squares: those of small gradients fall out of single precision.

    `norms_2P` holds sqrt(sum_k b_k |g_k|^2) and |gbar| of each parameter, on its device; the other
    fields are known to the host.
    """

    norms_2P: torch.Tensor
    examples: int
    parts: int
    spread: float  # r


def parts(
    own_KP: torch.Tensor,
    whole_P: torch.Tensor,
    sizes: Sequence[int],
    weights: Sequence[float] | None = None,
) -> Parts:
    """From the norms of the parts' mean gradients |g_k| and of the whole |gbar|, by parameter.

    `weights` need not add up to 1; they are in proportion to `sizes` where none are given. Raises
    `UserError` where there are fewer than two parts, or the parts and their sizes do not match.
    """
    if len(sizes) != len(own_KP) or (weights is not None and len(weights) != len(sizes)):
        raise UserError(f"{len(own_KP)} parts need {len(own_KP)} sizes and weights")
    examples, spread = sum(sizes), weight_spread(sizes, weights)
    root_K = torch.tensor(sizes, dtype=own_KP.dtype, device=own_KP.device).sqrt_()
    own_P = torch.linalg.vector_norm(own_KP * root_K[:, None], dim=0)
    return Parts(torch.stack([own_P, whole_P.to(own_P.dtype)]), examples, len(sizes), spread)


def weight_spread(sizes: Sequence[int], weights: Sequence[float] | None = None) -> float:
    """r = sum_k w_k^2 / b_k of the weights made to add up to 1; 1/n where they are b_k / n.

    Raises `UserError` where there are fewer than two parts, or an empty one.
    """
    if len(sizes) < 2:
        raise UserError("a noise scale needs a batch in two parts or more, not in one")
    if min(sizes) < 1:
        raise UserError(f"every part needs an example, not {min(sizes)}")
    if weights is None:
        return 1 / sum(sizes)
    return sum(w * w / b for w, b in zip(weights, sizes, strict=True)) / sum(weights) ** 2


def unbiased(
    own: Floats,
    whole: Floats,
    examples: Floats | int,
    parts: Floats | int,
    spread: Floats | float,
    population: int | None = None,
) -> tuple[Floats, Floats]:
    """tau and |G|^2 from sum_k b_k |g_k|^2 and |gbar|^2, elementwise (the module's equations).

    Both in the squared unit of the gradient, either may come out negative. `population` is N where
    a batch is drawn without replacement from N examples and |G|^2 is meant of these N.
    """
    tau = (own - examples * whole) / (parts - examples * spread)
    square = whole - spread * tau
    return tau, square if population is None else square + tau / population
