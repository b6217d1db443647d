"""The curvature statistics, exact: by going through every draw there is of a tiny data set.

With replacement from N samples there are N^K draws of K chunks of one. The mean of an unbiased
estimate over all of them is the truth to rounding, so nothing here is random but the data.

Shapes: N samples, P parameters (flattened), K chunks.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from batchlab.probes.curvature import CurvatureStatistics, Draw, draw, statistics
from batchlab.probes.hessian import gradient
from batchlab.spec import UserError

N, K = 4, 3


def softmax(seed: int = 0) -> tuple[nn.Linear, Callable[[Sequence[int]], Tensor]]:
    """Softmax regression in double, and its mean loss over rows."""
    g = torch.Generator().manual_seed(seed)
    x, y = torch.randn(N, 3, generator=g, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    model = nn.Linear(3, 3, dtype=torch.float64)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=g, dtype=torch.float64))
    return model, lambda rows: F.cross_entropy(model(x[list(rows)]), y[list(rows)])


def explicit(
    model: nn.Module, loss: Callable[[Sequence[int]], Tensor]
) -> tuple[np.ndarray, np.ndarray]:
    """All samples' gradients (N, P) and the mean Hessian (P, P), entry by entry."""
    parameters = list(model.parameters())
    own = [
        torch.cat([g.flatten() for g in gradient(partial(loss, [i]), parameters)]) for i in range(N)
    ]
    first = torch.autograd.grad(loss(range(N)), parameters, create_graph=True)
    flat_P = torch.cat([g.flatten() for g in first])
    hessian = [
        torch.cat([h.flatten() for h in torch.autograd.grad(v, parameters, retain_graph=True)])
        for v in flat_P
    ]
    return torch.stack(own).numpy(), torch.stack(hessian).numpy()


def truth(g_NP: np.ndarray, h_PP: np.ndarray, d_P: np.ndarray) -> np.ndarray:
    mean_P, sigma_PP = g_NP.mean(0), np.cov(g_NP.T, bias=True)
    root_PP, metric_PP = np.diag(np.sqrt(d_P)), np.diag(d_P)
    in_metric = root_PP @ h_PP @ root_PP @ root_PP @ sigma_PP @ root_PP
    return np.array(
        [
            (metric_PP @ sigma_PP).trace(),
            mean_P @ metric_PP @ mean_P,
            in_metric.trace(),
            mean_P @ metric_PP @ h_PP @ metric_PP @ mean_P,
        ]
    )


def metric_of(model: nn.Module) -> list[Tensor]:
    g = torch.Generator().manual_seed(5)
    return [torch.rand(p.shape, generator=g, dtype=p.dtype) + 0.1 for p in model.parameters()]


def all_draws(
    chunks: int, metric: Sequence[Tensor] | None, *, parts: bool = False
) -> tuple[np.ndarray, list[Draw]]:
    """The mean of the statistics over every draw of so many chunks, and the draws."""
    model, loss = softmax()
    parameters = list(model.parameters())

    def scaled(share: float, i: int) -> Tensor:
        return share * loss([i])

    drawn = []
    for rows in product(range(N), repeat=chunks):
        losses = [[partial(loss, [i])] for i in rows]
        if parts:
            losses = [[partial(scaled, 0.25, i), partial(scaled, 0.75, i)] for i in rows]
        drawn.append(draw(losses, parameters, 1, metric))
    told = np.mean([statistics(d.plain_KK, d.curved_Knn, 1) for d in drawn], axis=0)
    return told, drawn


@pytest.mark.parametrize("preconditioned", [False, True])
@pytest.mark.parametrize(("chunks", "parts"), [(3, False), (3, True), (4, False)])
def test_unbiased_over_every_draw(preconditioned: bool, chunks: int, parts: bool) -> None:
    model, loss = softmax()
    metric = metric_of(model) if preconditioned else None
    d_P = torch.cat([d.flatten() for d in metric]).numpy() if metric is not None else np.ones(12)
    told, drawn = all_draws(chunks, metric, parts=parts)
    expected = truth(*explicit(model, loss), d_P)
    assert told == pytest.approx(expected, rel=1e-10)
    assert all(d.exact for d in drawn)
    if preconditioned:  # the other metric's numbers are others
        assert told != pytest.approx(truth(*explicit(model, loss), np.ones(12)), rel=0.05)


def test_negative_control_a_chunks_own_hessian_is_biased() -> None:
    """g_a' H_a g_b has another mean than G'HG: a sample's gradient and curvature go together."""
    model, loss = softmax()
    g_NP, h_PP = explicit(model, loss)
    expected = truth(g_NP, h_PP, np.ones(12))
    parameters = list(model.parameters())
    reused = []
    for a, b in product(range(N), repeat=2):
        # The Hessian's chunk is the first gradient's: chunk c stands for a.
        one = draw([[partial(loss, [i])] for i in (a, a, b)], parameters, 1)
        reused.append(float(one.curved_Knn[0][0, 1]))  # v_a' H_a v_b
    assert np.mean(reused) != pytest.approx(expected[3], rel=0.05)
    # Nor may the two gradients be the same chunk's.
    told, drawn = all_draws(3, None)
    squares = [float(d.curved_Knn.diagonal(dim1=1, dim2=2).mean()) for d in drawn]
    assert np.mean(squares) == pytest.approx(expected[3] + expected[2], rel=1e-10)
    assert told[3] == pytest.approx(expected[3], rel=1e-10)


def test_a_quadratic_by_hand() -> None:
    """H = diag(1, 4), gradients at w of w'Hw / 2 - w.x: H w - x, one sample a chunk."""
    w = nn.Parameter(torch.tensor([1.0, 1.0]))
    h = torch.tensor([1.0, 4.0])
    x = [torch.tensor(v) for v in ([0.0, 0.0], [2.0, 0.0], [0.0, 1.0])]

    def loss(place: int) -> Tensor:
        return (h * w * w).sum() / 2 - w @ x[place]

    one = draw([[partial(loss, place)] for place in range(3)], [w], 1)
    # Gradients (1, 4), (-1, 4), (1, 3); pairs' products 15, 13, 11 plain and 63, 49, 47 curved.
    g = np.array([[1, 4], [-1, 4], [1, 3]])
    apart = np.array([g[0] - g[1], g[0] - g[2], g[1] - g[2]])
    spread = (apart**2).sum(0) @ np.array([[1, 1], [1, 4]]) / 2 / 3
    assert statistics(one.plain_KK, one.curved_Knn, 1) == pytest.approx(
        [spread[0], 13, spread[1], 53]
    )
    # Of chunks of ten examples the noise of one is ten times as much.
    assert statistics(one.plain_KK, one.curved_Knn, 10) == pytest.approx(
        [10 * spread[0], 13, 10 * spread[1], 53]
    )


def test_gathered_in_order() -> None:
    a, b = CurvatureStatistics(), CurvatureStatistics()
    eye = torch.eye(3, dtype=torch.float64)
    curved = torch.ones(3, 2, 2, dtype=torch.float64)
    a.update(Draw(eye, curved, 5))
    b.update(Draw(2 * eye, curved, 7, exact=False))
    a.merge(b)
    series = a.compute()
    assert series.trace_S == pytest.approx([5, 14])
    assert series.square_S == pytest.approx([0, 0])
    assert series.curved_square_S == pytest.approx([1, 1])
    assert series.examples_S.tolist() == [15, 21]
    assert series.noise.trace_S == pytest.approx([0, 0])
    assert not a.exact
    with pytest.raises(ValueError, match="no draw"):
        CurvatureStatistics().compute()


def test_too_few_chunks() -> None:
    model, loss = softmax()
    with pytest.raises(UserError, match="chunks: 2; must be 3 or more"):
        draw([[lambda: loss([0])]] * 2, list(model.parameters()), 1)
