"""The curvature-weighted noise scale's four statistics, from Hessian-vector products.

One step of w <- w - e D g, with g the mean gradient of a batch of B and D a diagonal metric
(1 for SGD; `probes/preconditioner.py`), changes the loss to second order by

    E dL = -e G'DG + e^2 / 2 (G'DHDG + tr(DHD Sigma) / B)

whose minimum is at e_opt(B) = e_max / (1 + B_noise / B) with

    e_max = G'DG / (G'DHDG),        B_noise = tr(DHD Sigma) / (G'DHDG)

(McCandlish et al., 2018, section 2.2, for D = 1; with D^(1/2) G, D^(1/2) Sigma D^(1/2) and
D^(1/2) H D^(1/2) for G, Sigma and H it is theirs.) D must not depend on the step's own batch.

**Estimates** from K >= 3 independent chunks of b examples. With v_a = D g_a and H_c the Hessian of
chunk c's mean loss, for a, b, c all different E v_a' H_c v_b = G'DHDG, and (v_a - v_b)' H_c
(v_a - v_b) / 2 has the mean tr(DHD Sigma) / b. Both are averaged over all ordered triples, for
which every H_c is multiplied with every other chunk's v_a: with n = K - 1 others, their mean m and

    own_c = mean_a v_a' H_c v_a,        whole_c = m' H_c m

the averages are `parts.unbiased(own_c, whole_c, b, n b)`. G'DG and tr(D Sigma) come from the same
chunks' inner products. A chunk's own gradient never meets its own Hessian: they are correlated.

**Cost**, an example: a gradient, one more with its graph, and K - 1 products of about two each:
2 K gradients in all. More draws of three chunks are the better use of the same work.

Shapes: S draws, K chunks, n = K - 1 others, P parameters.
"""

from collections.abc import Sequence
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from batchlab.probes.hessian import Loss, gradient, hessian_products
from batchlab.probes.parts import Floats, unbiased
from batchlab.record import CurvatureSeries
from batchlab.spec import UserError

FEWEST_CHUNKS = 3  # two for the gradients, one for the Hessian


class Draw(NamedTuple):
    """Inner products of one draw's chunks, float64, on the device.

    `plain_KK` is g_a' D g_b; `curved_Knn` is v_a' H_c v_b, of each c among the others in order.
    `examples` are those of a chunk; `exact` is false where gradients were differenced.
    """

    plain_KK: Tensor
    curved_Knn: Tensor
    examples: int
    exact: bool = True


def draw(
    chunks: Sequence[Sequence[Loss]],
    parameters: Sequence[Tensor],
    examples: int,
    metric: Sequence[Tensor] | None = None,
) -> Draw:
    """K chunks of so many independent examples each; no host-device sync.

    A chunk is given as losses that add up to its mean loss: one, or one a micro-batch. `metric` is
    D, a tensor a parameter in its shape; None is 1. Besides the graph of one loss, 2 K vectors of
    the parameters' size are in memory. Raises `UserError` for fewer than three chunks.
    """
    if len(chunks) < FEWEST_CHUNKS:
        raise UserError(f"chunks: {len(chunks)}; must be {FEWEST_CHUNKS} or more")
    gradients = [_sum([gradient(loss, parameters) for loss in chunk]) for chunk in chunks]
    steps = gradients
    if metric is not None:
        steps = [[d * g for d, g in zip(metric, own, strict=True)] for own in gradients]
    curved, exact = [], True
    for place, chunk in enumerate(chunks):
        others = steps[:place] + steps[place + 1 :]
        products: list[list[Tensor]] = []
        for loss in chunk:
            told, sure = hessian_products(loss, parameters, others)
            products = (
                [_sum(pair) for pair in zip(products, told, strict=True)] if products else told
            )
            exact = exact and sure
        curved.append(_inner(others, products))
    return Draw(_inner(gradients, steps), torch.stack(curved), examples, exact)


class CurvatureStatistics:
    """Draws gathered without waiting for the device."""

    def __init__(self) -> None:
        self._draws: list[Draw] = []

    def update(self, one: Draw) -> None:
        """Take in a draw; no host-device sync."""
        self._draws.append(one)

    def merge(self, other: Self) -> None:
        """Append another accumulator's draws: of other weights, say."""
        self._draws += other._draws

    def compute(self) -> CurvatureSeries:
        """The series over draws; raises `ValueError` where there was none."""
        if not self._draws:
            raise ValueError("no draw was seen")
        told = [statistics(d.plain_KK, d.curved_Knn, d.examples) for d in self._draws]
        examples_S = [float(d.examples * len(d.plain_KK)) for d in self._draws]
        trace_S, square_S, curved_trace_S, curved_square_S = np.array(told).T
        return CurvatureSeries(
            trace_S, square_S, curved_trace_S, curved_square_S, np.array(examples_S)
        )

    @property
    def exact(self) -> bool:
        """Whether every product was differentiated, none differenced."""
        return all(d.exact for d in self._draws)


def statistics(plain_KK: Tensor, curved_Knn: Tensor, examples: int) -> Floats:
    """One draw's tr(D Sigma), G'DG, tr(DHD Sigma) and G'DHDG (4), each without bias."""
    told = []
    for inner_Cnn in (plain_KK[None], curved_Knn):
        of_Cnn = inner_Cnn.double().cpu().numpy()
        n = of_Cnn.shape[-1]
        own_C = np.trace(of_Cnn, axis1=1, axis2=2) / n
        whole_C = of_Cnn.sum(axis=(1, 2)) / n**2
        told += [v.mean() for v in unbiased(own_C, whole_C, examples, n * examples)]
    return np.array(told)


def _inner(left: Sequence[Sequence[Tensor]], right: Sequence[Sequence[Tensor]]) -> Tensor:
    """Inner products of each with each, in double, as G'DHDG is a small difference of them."""
    total: Tensor | None = None
    for a, b in zip(zip(*left, strict=True), zip(*right, strict=True), strict=True):
        a_KW, b_KW = (torch.stack(v).flatten(1).double() for v in (a, b))
        part = a_KW @ b_KW.mT
        total = part if total is None else total + part
    assert total is not None
    return total


def _sum(parts: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    total = list(parts[0])
    for part in parts[1:]:
        total = list(torch._foreach_add(total, list(part)))
    return total
