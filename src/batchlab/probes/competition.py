"""Do the samples of a batch compete? How their own gradients agree, or cancel.

All of it comes from the Gram matrix of per-sample gradients, K_ij = <g_i, g_j>, and that from
what a backward pass has at hand: in a fully connected layer with inputs h and output gradients d
sample i's weight gradient is d_i h_i^T and its bias gradient d_i, so

    K = (d d^T) * (h h^T + 1)      elementwise; the 1 is the bias's

without any one gradient being materialised. Layers add.

Shapes: B samples of a draw, I inputs and O outputs of a layer, P pairs i < j.
"""

from collections.abc import Mapping

import torch

from batchlab.record import ALL, Reading
from batchlab.spec import batch_slices

ROWS = 256  # of a matrix of inner products, at once
BINS = 40  # of cosines, of equal width from -1 to 1


def inner_products(h_BI: torch.Tensor) -> torch.Tensor:
    """Those of a layer's inputs, plus one for its bias, in float64 (B, B)."""
    return _square(h_BI).add_(1.0)


def gram(d_BO: torch.Tensor, inner_BB: torch.Tensor) -> torch.Tensor:
    """The Gram matrix of one layer's per-sample gradients, weights and bias, in float64 (B, B).

    `d_BO` are gradients of each sample's own loss. A backward pass of the mean loss gives them
    divided by B: multiply first. `inner_BB` are the `inner_products` of the layer's inputs. Raises
    `ValueError` where the two are not of the same samples.
    """
    samples = d_BO.shape[:1]
    if d_BO.ndim != 2 or inner_BB.shape != samples * 2:
        raise ValueError(f"not of the same samples: {tuple(d_BO.shape)}, {tuple(inner_BB.shape)}")
    return _square(d_BO).mul_(inner_BB)


def grams(pairs: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """`gram` of every layer's `(d_BO, inner_BB)` under the layer's name, and of `all` together.

    A layer's matrix is of its weight and bias as one vector. Raises `ValueError` where there is
    no layer, or `gram` does.
    """
    if not pairs:
        raise ValueError("no layers were given")
    each = {layer: gram(d_BO, inner_BB) for layer, (d_BO, inner_BB) in pairs.items()}
    return each | {ALL: torch.stack(list(each.values())).sum(0)}


def competition(gram_BB: torch.Tensor, layer: str = ALL) -> list[Reading]:
    """What the Gram matrix of n per-sample gradients says of their agreement.

    With gbar the mean gradient and Sigma the samples' covariance:

    `diversity`           n sum|g_i|^2 / |sum g_i|^2, which is n Delta of Yin et al. (2018): the
                          batch size up to which gradients add up; 1 where all are equal, n where
                          they are orthogonal, more where they cancel
    `noise_scale`         tr(Sigma) / |gbar|^2, Sigma with 1/n (McCandlish et al., 2018): of these
                          n samples themselves; diversity = 1 + noise scale, exactly
    `noise_trace`         tr(Sigma) with 1/(n - 1), unbiased for the population
    `gradient_square`     |gbar|^2 - noise_trace / n, unbiased for the population's |G|^2; may be
                          negative. Average both over draws, then divide: the ratio is biased.
                          For draws without replacement from N, add noise_trace / N.
    `min_inner_product`   least <g_i, g_j> over i != j: gradient confusion is minus that
                          (Sankararaman et al., 2020)
    `min_cosine`          the same of directions
    `mean_cosine`         over pairs
    `negative_share`      the part of pairs whose inner product is negative: that compete
    `zero_gradients`      samples whose gradient is exactly zero

    A zero gradient has no direction and is in no cosine, nor in the share of negative pairs. A
    reading that does not exist is left out: the first two where the gradients' sum is exactly
    zero, those of directions where fewer than two gradients are not. Norms are in the loss's unit
    over that of the parameters; their squares here.

    Raises `ValueError` where the matrix is not square, has fewer than two samples, or a value is
    not finite.
    """
    _check(gram_BB)
    n = len(gram_BB)
    own = gram_BB.diagonal().double()
    each, total = own.sum(), gram_BB.double().sum()
    least = gram_BB.double().masked_fill(
        torch.eye(n, dtype=torch.bool, device=own.device), torch.inf
    )
    cosine_P = _cosines(gram_BB)
    sums = torch.stack([each, total, least.min(), (own == 0).sum().double()])
    square_sum, sum_square, min_inner, zeros = sums.tolist()
    mean_square = sum_square / n**2
    noise = (square_sum / n - mean_square) * n / (n - 1)
    values = {
        "noise_trace": noise,
        "gradient_square": mean_square - noise / n,
        "min_inner_product": min_inner,
        "zero_gradients": zeros,
    }
    if sum_square > 0:
        values["diversity"] = n * square_sum / sum_square
        values["noise_scale"] = (square_sum / n - mean_square) / mean_square
    if len(cosine_P):
        told = [cosine_P.min(), cosine_P.mean(), (cosine_P < 0).double().mean()]
        names = ("min_cosine", "mean_cosine", "negative_share")
        values |= zip(names, torch.stack(told).tolist(), strict=True)
    return [Reading(name, layer, value) for name, value in values.items()]


def cosine_counts(gram_BB: torch.Tensor) -> torch.Tensor:
    """How many pairs i < j have their cosine in each bin: int64 (BINS), on the CPU.

    Bin k holds -1 + k w <= cosine < -1 + (k + 1) w with w = 2 / BINS; the last holds 1 too. Counts
    of several draws add. Raises `ValueError` as `competition` does.
    """
    _check(gram_BB)
    index = ((_cosines(gram_BB) + 1) * (BINS / 2)).long().clamp_(0, BINS - 1)
    return torch.bincount(index, minlength=BINS).cpu()


def cosine_bins(counts: torch.Tensor) -> list[tuple[float, float, int]]:
    """`(low, high, count)` of every bin of `cosine_counts`, from -1 on."""
    width = 2 / BINS
    edges = [(-1 + k * width, -1 + (k + 1) * width) for k in range(BINS)]
    return [(low, high, n) for (low, high), n in zip(edges, counts.tolist(), strict=True)]


def _square(a_BI: torch.Tensor) -> torch.Tensor:
    """a a^T in float64, of which only one half is computed (B, B)."""
    a = a_BI.detach().double()
    found = a.new_empty(len(a), len(a))
    for rows in batch_slices(len(a), ROWS):
        found[rows, : rows.stop] = a[rows] @ a[: rows.stop].T
        found[: rows.start, rows] = found[rows, : rows.start].T
    return found


def _cosines(gram_BB: torch.Tensor) -> torch.Tensor:
    """Cosines of all pairs i < j of gradients that are not zero, in float64 (P)."""
    some = gram_BB.diagonal() > 0
    k = gram_BB[some][:, some].double()
    # Root before product: the product of two squares may be too small for a float.
    norm = k.diagonal().sqrt()
    i, j = torch.triu_indices(len(k), len(k), offset=1, device=k.device)
    return (k / norm / norm[:, None])[i, j].clamp_(-1.0, 1.0)


def _check(gram_BB: torch.Tensor) -> None:
    if gram_BB.ndim != 2 or gram_BB.shape[0] != gram_BB.shape[1]:
        raise ValueError(f"a Gram matrix is square, not {tuple(gram_BB.shape)}")
    if len(gram_BB) < 2:
        raise ValueError("competition needs two samples")
    if not bool(gram_BB.isfinite().all()):
        raise ValueError("a gradient is not finite")
