"""Down and up through a layer: by products beside the sums written out, by the kernel beside
products."""

import pytest
import torch

from batchlab.engine.blocked import advance
from tests.engine.interpreted import INTERPRETED, passes

# replicas, samples of the step and of the next, inputs, outputs
SHAPES = [(2, 1, 1, 37, 64), (1, 2, 1, 40, 20), (3, 1, 2, 300, 33), (1, 2, 2, 130, 17)]


def drawn(shape: tuple[int, int, int, int, int], device: str) -> tuple[torch.Tensor, ...]:
    """What `advance` takes, with silent units, some of which awake."""
    replicas, batch, following, inputs, outputs = shape
    g = torch.Generator().manual_seed(4)

    def normal(*of: int) -> torch.Tensor:
        return torch.randn(replicas, *of, generator=g, dtype=torch.float64).to(device)

    weight, updates = normal(inputs, outputs), normal(batch, outputs)
    held, back = normal(batch, inputs).clamp_min(0.0), normal(batch, inputs)
    known, table = normal(following, inputs), normal(10, 12)
    return weight, updates, held, back, known, table[:, 1 : 1 + following, 3 : 3 + batch]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_sums_written_out(shape: tuple[int, int, int, int, int]) -> None:
    given = drawn(shape, "cpu")
    weight, updates, held, back, known, gram = (of.clone() for of in given)
    found = advance(*given)
    for r in range(shape[0]):
        below = torch.zeros_like(held[r])
        for b in range(shape[1]):
            for i in range(shape[3]):
                if held[r, b, i] > 0:
                    below[b, i] = back[r, b, i] + (updates[r, b] * weight[r, i]).sum()
        onward = torch.stack([known[r, n] + gram[r, n] @ below for n in range(shape[2])]).relu()
        output = torch.stack([(weight[r] * h[:, None]).sum(0) for h in onward])
        for mine, theirs in zip(found, (below, onward, output), strict=True):
            assert mine is not None
            torch.testing.assert_close(mine[r], theirs, rtol=1e-12, atol=1e-12)


def kernel_beside_products(device: str) -> None:
    """On a CPU this wants Triton's interpreter."""
    from batchlab.engine.advance_kernel import launch

    for shape in SHAPES:
        for spoilt in (False, True):
            given = drawn(shape, device)
            if spoilt:  # a pass that diverges stays diverged
                given[1][0, 0, 0] = torch.nan
            mine, theirs = launch(*given), advance(*(of.cpu() for of in given))
            for one, other in zip(mine, theirs, strict=True):
                assert other is not None
                torch.testing.assert_close(one.cpu(), other, rtol=1e-12, atol=1e-11, equal_nan=True)


@pytest.mark.skipif(not INTERPRETED, reason="needs Triton and no GPU")
def test_the_kernel_interpreted() -> None:
    passes(__name__, "kernel_beside_products('cpu')")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_kernel_on_a_gpu() -> None:
    kernel_beside_products("cuda")
