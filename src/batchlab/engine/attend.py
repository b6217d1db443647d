"""Linear attention over what a pass has kept: what its steps so far add to a product.

Weights that began as W_0 and took steps of sum_t u_t h_t^T since are never formed: their product
with a new h is W_0 h + sum_t (h_t . h) u_t, keys h_t and values u_t; and that of their transpose
with a new u is W_0^T u + sum_t (u_t . u) h_t, the other way round. What this costs is reading both.

Keys and values may be kept in single precision; queries, results and all arithmetic are in double,
or in the precision of the queries. For few queries on CUDA by the kernels of `attend_kernels.py`,
where Triton is there, which PyTorch's builds for CUDA bring; otherwise by PyTorch's products.

Shapes: R replicas, B queries, T rows of history, I and O widths of keys and of values.
"""

import warnings
from functools import cache
from importlib.util import find_spec

import torch

TRITON = find_spec("triton") is not None
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
    if _by_kernels(out_RBO, keys_RTI):
        from batchlab.engine.attend_kernels import launch_scores

        weights_RBT = launch_scores(keys_RTI, queries_RBI, bias)
    else:
        weights_RBT = torch.bmm(queries_RBI, keys_RTI.to(queries_RBI.dtype).mT).add_(bias)
    mix(out_RBO, weights_RBT, values_RTO)


def mix(out_RBO: torch.Tensor, weights_RBT: torch.Tensor, values_RTO: torch.Tensor) -> None:
    """Add sum_t weights_t values_t of every query to `out_RBO`, in place; the same is asked."""
    if _by_kernels(out_RBO, values_RTO):
        from batchlab.engine.attend_kernels import launch_mix

        launch_mix(out_RBO, weights_RBT, values_RTO)
    else:
        out_RBO.baddbmm_(weights_RBT, values_RTO.to(out_RBO.dtype))


def _by_kernels(out_RBO: torch.Tensor, history_RTO: torch.Tensor) -> bool:
    """The kernels sum in double whatever is asked; a product would first convert the history."""
    here = TRITON and out_RBO.is_cuda and out_RBO.dtype == torch.float64
    few = out_RBO.shape[1] <= FEW or history_RTO.dtype != torch.float64
    return here and few and can_launch()


@cache
def can_launch() -> bool:
    """Whether a kernel can be built here and runs: Triton wants a C compiler for that.

    Says so in a `RuntimeWarning` where not.
    """
    try:
        from batchlab.engine.attend_kernels import launch_mix

        small = torch.zeros(1, 1, 16, dtype=torch.float64, device="cuda")
        launch_mix(small, small[..., :1], small)
    except Exception as error:  # of a compiler, a loader, a driver
        warnings.warn(
            f"trials go without the kernels for CUDA, several times slower: {error}",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return True
