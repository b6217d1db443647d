"""Linear attention over what a pass has kept: what its steps so far add to a product.

Weights that were W and took steps of sum_t u_t h_t^T since need not be formed: their product with
a new h is W h + sum_t (h_t . h) u_t, keys h_t and values u_t; and that of their transpose with a
new u is W^T u + sum_t (u_t . u) h_t, the other way round. What this costs is reading both.

In double and for few queries on CUDA by the kernels of `attend_kernels.py`, where Triton is there,
which PyTorch's builds for CUDA bring; otherwise by PyTorch's products.

Shapes: R replicas, B queries, T rows of history, I and O widths of keys and of values.
"""

import torch

from batchlab.engine.launching import can_launch

FEW = 8  # queries by one reading of the history: sums of more do not fit in registers


def attend(
    out_RBO: torch.Tensor,
    keys_RTI: torch.Tensor,
    values_RTO: torch.Tensor,
    queries_RBI: torch.Tensor,
    bias: float,
) -> None:
    """Add sum_t (keys_t . query + bias) values_t of every query to `out_RBO`, in place.

    The history is of one replica after another, rows without gaps; `out_RBO` and the queries are
    contiguous: the kernels go by it.
    """
    if by_kernels(out_RBO):
        from batchlab.engine.attend_kernels import launch_scores

        weights_RBT = launch_scores(keys_RTI, queries_RBI, bias)
    else:
        weights_RBT = torch.bmm(queries_RBI, keys_RTI.mT).add_(bias)
    mix(out_RBO, weights_RBT, values_RTO)


def mix(out_RBO: torch.Tensor, weights_RBT: torch.Tensor, values_RTO: torch.Tensor) -> None:
    """Add sum_t weights_t values_t of every query to `out_RBO`, in place; the same is asked."""
    if by_kernels(out_RBO):
        from batchlab.engine.attend_kernels import launch_mix

        launch_mix(out_RBO, weights_RBT, values_RTO)
    else:
        out_RBO.baddbmm_(weights_RBT, values_RTO)


def by_kernels(queries_RBI: torch.Tensor) -> bool:
    """Whether kernels of our own are for so many queries, and can be built here."""
    here = queries_RBI.is_cuda and queries_RBI.dtype == torch.float64
    return here and 0 < queries_RBI.shape[1] <= FEW and can_launch()
