"""Attention over a history: by products beside the sums written out, by kernels beside products."""

import pytest
import torch

from batchlab.engine.attend import attend, mix
from tests.engine.interpreted import INTERPRETED, passes

KEPT = 50  # rows that there is room for
# replicas, queries, rows before and behind the history, its width
SHAPES = [(2, 1, 0, 37, 64), (1, 3, 5, 38, 40), (3, 8, 0, 1, 33), (2, 11, 2, 50, 130)]


def drawn(shape: tuple[int, int, int, int, int], device: str) -> tuple[torch.Tensor, ...]:
    """out, keys, values, queries, a part of a table of weights."""
    replicas, queries, start, stop, width = shape
    g = torch.Generator().manual_seed(3)

    def normal(rows: int, columns: int) -> torch.Tensor:
        drawn = torch.randn(replicas, rows, columns, generator=g, dtype=torch.float64)
        return drawn.to(device)

    out, asked = normal(queries, width), normal(queries, width)
    keys, values = (normal(KEPT, width)[:, start:stop] for _ in range(2))
    return out, keys, values, asked, normal(KEPT, KEPT)[:, :queries, start:stop]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_sums_written_out(shape: tuple[int, int, int, int, int]) -> None:
    out, keys, values, queries, weights = drawn(shape, "cpu")
    attended, mixed = out.clone(), out.clone()
    attend(attended, keys, values, queries, 0.5)
    mix(mixed, weights, values)
    for r in range(shape[0]):
        for b in range(shape[1]):
            one, other = out[r, b].clone(), out[r, b].clone()
            for t in range(keys.shape[1]):
                one += ((keys[r, t] * queries[r, b]).sum() + 0.5) * values[r, t]
                other += weights[r, b, t] * values[r, t]
            torch.testing.assert_close(attended[r, b], one, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(mixed[r, b], other, rtol=1e-12, atol=1e-12)


def kernels_beside_products(device: str) -> None:
    """On a CPU this wants Triton's interpreter."""
    from batchlab.engine.attend_kernels import launch_mix, launch_scores

    for shape in SHAPES:
        out, keys, values, queries, weights = drawn(shape, device)
        attended, mixed = out.clone(), out.clone()
        launch_mix(attended, launch_scores(keys, queries, 0.5), values)
        launch_mix(mixed, weights, values)
        known = torch.bmm(queries, keys.mT) + 0.5
        for mine, factors in ((attended, known), (mixed, weights)):
            theirs = out + torch.bmm(factors, values)
            torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-11)


@pytest.mark.skipif(not INTERPRETED, reason="needs Triton and no GPU")
def test_kernels_interpreted() -> None:
    passes(__name__, "kernels_beside_products('cpu')")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_kernels_on_a_gpu() -> None:
    kernels_beside_products("cuda")
