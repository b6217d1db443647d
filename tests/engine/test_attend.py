"""Attention over a history: by products beside the sums written out, by kernels beside products."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from batchlab.engine import attend as attention
from batchlab.engine.attend import attend, mix

ROOT = Path(__file__).parents[2]
KEPT = 50  # rows that there is room for
# replicas, queries, rows before and behind the history, its width
SHAPES = [(2, 1, 0, 37, 64), (1, 3, 5, 38, 40), (3, 8, 0, 1, 33), (2, 11, 2, 50, 130)]


def drawn(
    shape: tuple[int, int, int, int, int], kept: torch.dtype, device: str
) -> tuple[torch.Tensor, ...]:
    """out, keys, values, queries, a part of a table of weights."""
    replicas, queries, start, stop, width = shape
    g = torch.Generator().manual_seed(3)

    def normal(rows: int, columns: int) -> torch.Tensor:
        drawn = torch.randn(replicas, rows, columns, generator=g, dtype=torch.float64)
        return drawn.to(device)

    out, asked = normal(queries, width), normal(queries, width)
    keys, values = (normal(KEPT, width).to(kept)[:, start:stop] for _ in range(2))
    return out, keys, values, asked, normal(KEPT, KEPT)[:, :queries, start:stop]


@pytest.mark.parametrize("kept", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_sums_written_out(shape: tuple[int, int, int, int, int], kept: torch.dtype) -> None:
    out, keys, values, queries, weights = drawn(shape, kept, "cpu")
    attended, mixed = out.clone(), out.clone()
    attend(attended, keys, values, queries, 0.5)
    mix(mixed, weights, values)
    for r in range(shape[0]):
        for b in range(shape[1]):
            one, other = out[r, b].clone(), out[r, b].clone()
            for t in range(keys.shape[1]):
                value = values[r, t].double()
                one += ((keys[r, t].double() * queries[r, b]).sum() + 0.5) * value
                other += weights[r, b, t] * value
            torch.testing.assert_close(attended[r, b], one, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(mixed[r, b], other, rtol=1e-12, atol=1e-12)


def test_where_no_kernel_can_be_built_a_warning_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "batchlab.engine.attend_kernels", None)
    attention.can_launch.cache_clear()
    with pytest.warns(RuntimeWarning, match="slower: .*attend_kernels"):
        assert not attention.can_launch()
    attention.can_launch.cache_clear()


def kernels_beside_products(device: str) -> None:
    """On a CPU this wants Triton's interpreter."""
    from batchlab.engine.attend_kernels import launch_mix, launch_scores

    for shape in SHAPES:
        for kept in (torch.float32, torch.float64):
            out, keys, values, queries, weights = drawn(shape, kept, device)
            attended, mixed = out.clone(), out.clone()
            launch_mix(attended, launch_scores(keys, queries, 0.5), values)
            launch_mix(mixed, weights, values)
            known = torch.bmm(queries, keys.double().mT) + 0.5
            for mine, factors in ((attended, known), (mixed, weights)):
                theirs = out + torch.bmm(factors, values.double())
                torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-11)


def interpreted() -> None:
    """The same by Triton's interpreter, in a process that began with TRITON_INTERPRET set."""
    from triton.runtime import interpreter

    # It makes an index of an array of one number, which NumPy has ceased to do.
    before = interpreter._patch_lang_tensor

    def patch(tensor: Any, scope: Any) -> None:
        before(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = patch
    kernels_beside_products("cpu")


@pytest.mark.skipif(not attention.TRITON, reason="needs Triton")
def test_kernels_interpreted() -> None:
    code = f"from {__name__} import interpreted; interpreted(); print('compared')"
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.stdout.strip() == "compared", done.stderr


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_kernels_on_a_gpu() -> None:
    kernels_beside_products("cuda")
