"""What a noise scale is measured from: a batch in parts, their gradients' norms and the whole's.

A batch falls into parts: its single examples, the chunks of gradient accumulation, two halves, the
ranks of data parallel training. Part k has b_k examples and the mean gradient g_k, whose covariance
is Sigma / b_k. The whole is gbar = sum_k w_k g_k with sum_k w_k = 1, and w_k is b_k over the number
of examples unless the training loop weighs otherwise (the mean of micro-batch means where the last
micro-batch is short). With tau = tr(Sigma) and the effective batch sizes

    1 / small = sum_k w_k / b_k,        1 / big = sum_k w_k^2 / b_k

(small is the weighted harmonic mean of the sizes, big the number of examples for the usual weights)

    E sum_k w_k |g_k|^2 = |G|^2 + tau / small,        E |gbar|^2 = |G|^2 + tau / big

and the two norms give both unknowns, each without bias (McCandlish et al., 2018, appendix A.1):

    tau   = (sum_k w_k |g_k|^2 - |gbar|^2) / (1 / small - 1 / big)
    |G|^2 = |gbar|^2 - tau / big

The difference is sum_k w_k |g_k - gbar|^2, so tau is never negative but by rounding. For equal
sizes it is the analysis of variance's estimate; for single examples, tau = n/(n - 1) (mean |g_i|^2
- |gbar|^2). Drawn without replacement from N examples, two parts have the covariance -Sigma / N
(Sigma with N - 1 in the denominator), which leaves tau as it is and adds tau / N to |G|^2: the
square of the mean of those N (Cochran, Sampling Techniques, 1977, section 2.6).

Shapes: P parameters, K parts, S steps.
"""

from collections.abc import Sequence
from math import sqrt
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from batchlab.spec import UserError

Floats = NDArray[np.float64]
Rows = tuple[list[float], list[float]]


class Parts(NamedTuple):
    """One step's batch. Norms, not squares: those of small gradients fall out of single precision.

    `norms` (2, P) holds sqrt(sum_k w_k |g_k|^2) and |gbar| of each parameter, on its device or as
    two rows on the host; the other fields are known to the host.
    """

    norms: torch.Tensor | Rows
    examples: int
    small: float
    big: float

    @property
    def norms_2P(self) -> torch.Tensor:
        """The norms as a tensor; those of the host in double."""
        if isinstance(self.norms, torch.Tensor):
            return self.norms
        return torch.tensor(self.norms, dtype=torch.float64)


def parts(
    own_KP: torch.Tensor,
    whole_P: torch.Tensor,
    sizes: Sequence[int],
    weights: Sequence[float] | None = None,
) -> Parts:
    """From the norms of the parts' mean gradients |g_k| and of the whole |gbar|, by parameter.

    Weights are in proportion to `sizes` where none are given, and need not add up to 1. Raises
    `UserError` where there are fewer than two parts, an empty one, or not a size for each.
    """
    if len(own_KP) != len(sizes):
        raise UserError(f"{len(own_KP)} parts need {len(own_KP)} sizes, not {len(sizes)}")
    share, small, big = effective(sizes, weights)
    # Numbers go with the call: a tensor of them would have to wait for the device.
    weighed = torch._foreach_mul(list(own_KP.unbind()), [sqrt(w) for w in share])
    own_P = torch.linalg.vector_norm(torch.stack(weighed), dim=0)
    return Parts(torch.stack([own_P, whole_P.to(own_P.dtype)]), sum(sizes), small, big)


def effective(
    sizes: Sequence[int], weights: Sequence[float] | None = None
) -> tuple[list[float], float, float]:
    """Weights made to add up to 1, and the sizes small and big; raises as `parts` does."""
    if len(sizes) < 2:
        raise UserError("a noise scale needs a batch in two parts or more, not in one")
    if min(sizes) < 1:
        raise UserError(f"every part needs an example, not {min(sizes)}")
    weights = sizes if weights is None else weights
    share = [w / sum(weights) for w in weights]
    small = 1 / sum(w / b for w, b in zip(share, sizes, strict=True))
    return share, small, 1 / sum(w * w / b for w, b in zip(share, sizes, strict=True))


def unbiased(
    own: Floats,
    whole: Floats,
    small: Floats | float,
    big: Floats | float,
    population: int | None = None,
) -> tuple[Floats, Floats]:
    """tau and |G|^2 from sum_k w_k |g_k|^2 and |gbar|^2, elementwise (the module's equations).

    Both in the squared unit of the gradient; |G|^2 may come out negative. `population` is N where a
    batch is drawn without replacement from N examples and |G|^2 is meant of these N.
    """
    tau = (own - whole) / (1 / small - 1 / big)
    square = whole - tau / big
    return tau, square if population is None else square + tau / population
