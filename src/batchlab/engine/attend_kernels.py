"""Linear attention over a stored history, for CUDA: its two halves as Triton kernels.

With n rows of history, keys k_t and values v_t, and a query q,

    weight_t = k_t . q + bias             `scores`
    out += sum_t weight_t v_t             `mix`

Each half reads its part of the history once for up to `BATCH` queries, and is bound by that
reading. All products and sums are in double, and each sum is taken in one fixed order, whatever the
number of replicas.

A thread has a sum of its own for each of its rows (or columns) and each query, so that threads meet
once a program and not once a tile. Nothing that changes from step to step is part of a kernel's
identity: none is compiled anew as the history grows.

Shapes: R replicas, B queries, T rows of history, W their width.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from batchlab.engine.attend import FEW
from batchlab.engine.loop import BLOCK

VECTOR = tl.constexpr(4)  # numbers of a row that a thread loads after each other
WARPS = 4
# A tile of `scores` has fewer columns than the program threads: else every part of a query would
# take the way through shared memory, with a barrier, instead of being read by all who need it.
SCORES: dict[str, Any] = {"ROWS": 32, "TILE": 64, "REPEATS": 2}
BLOCKS: dict[str, Any] = {"ROWS": 8, "TILE": 64, "REPEATS": 1}  # of a history of a block's length
MIX: dict[str, Any] = {"ROWS": 16, "TILE": 128, "SUMS": WARPS}


@triton.jit(
    do_not_specialize=["n", "samples", "batch", "bias"],
    do_not_specialize_on_alignment=["out"],
)
def scores(
    keys,
    queries,
    out,
    n,
    samples,
    batch,
    bias,
    WIDTH: tl.constexpr,
    BATCH: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    REPEATS: tl.constexpr,
):
    """out[r, b, t] = keys[r, t] . queries[r, b] + bias, for t < n.

    `keys` (R, samples, WIDTH), `queries` (R, batch, WIDTH), `out` (R, batch, n). Grid: batches of
    `BATCH` queries, stretches of `ROWS * REPEATS` rows, R.
    """
    first = tl.program_id(0) * BATCH
    replica = tl.program_id(2).to(tl.int64)
    keys += replica * samples * WIDTH
    queries += (replica * batch + first) * WIDTH
    out += (replica * batch + first) * n
    for repeat in range(REPEATS):
        rows = (tl.program_id(1) * REPEATS + repeat) * ROWS + tl.arange(0, ROWS)
        sums = (tl.zeros((ROWS, TILE // VECTOR), tl.float64),) * BATCH
        for start in range(0, WIDTH, TILE):
            columns = start + tl.arange(0, TILE)
            inside = (rows[:, None] < n) & (columns[None, :] < WIDTH)
            at = rows[:, None] * WIDTH + columns[None, :]
            tile = tl.load(keys + at, inside, 0.0)
            more = ()
            for b in tl.static_range(BATCH):
                known = (columns < WIDTH) & (first + b < batch)
                query = tl.load(queries + b * WIDTH + columns, known, 0.0)
                product = tl.reshape(tile * query[None, :], (ROWS, TILE // VECTOR, VECTOR))
                more = more + (sums[b] + tl.sum(product, 2),)
            sums = more
        for b in tl.static_range(BATCH):
            total = tl.sum(sums[b], 1) + bias
            tl.store(out + b * n + rows, total, (rows < n) & (first + b < batch))


@triton.jit(
    do_not_specialize=["n", "samples", "batch", "weight_stride", "query_stride"],
    do_not_specialize_on_alignment=["weights"],
)
def mix(
    weights,
    values,
    out,
    n,
    samples,
    batch,
    weight_stride,
    query_stride,
    WIDTH: tl.constexpr,
    BATCH: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    SUMS: tl.constexpr,
):
    """out[r, b] += sum of weights[r, b, t] values[r, t] over t < n.

    `weights`: n numbers a query, those of a query `query_stride` after those of the one before, and
    those of a replica `weight_stride`; `values` (R, samples, WIDTH), `out` (R, batch, WIDTH). Grid:
    batches of `BATCH` queries, stretches of `TILE` columns, R.
    """
    first = tl.program_id(0) * BATCH
    replica = tl.program_id(2).to(tl.int64)
    values += replica * samples * WIDTH
    weights += replica * weight_stride + first * query_stride
    out += (replica * batch + first) * WIDTH
    columns = tl.program_id(1) * TILE + tl.arange(0, TILE)
    sums = (tl.zeros((SUMS, TILE), tl.float64),) * BATCH
    for start in range(0, n, ROWS):
        rows = start + tl.arange(0, ROWS)
        inside = (rows[:, None] < n) & (columns[None, :] < WIDTH)
        at = rows[:, None] * WIDTH + columns[None, :]
        tile = tl.load(values + at, inside, 0.0)
        more = ()
        for b in tl.static_range(BATCH):
            known = (rows < n) & (first + b < batch)
            weight = tl.load(weights + b * query_stride + rows, known, 0.0)
            product = tl.reshape(tile * weight[:, None], (ROWS // SUMS, SUMS, TILE))
            more = more + (sums[b] + tl.sum(product, 0),)
        sums = more
    for b in tl.static_range(BATCH):
        at = out + b * WIDTH + columns
        known = (columns < WIDTH) & (first + b < batch)
        tl.store(at, tl.load(at, known) + tl.sum(sums[b], 0), known)


def launch_scores(keys_RTW: torch.Tensor, queries_RBW: torch.Tensor, bias: float) -> torch.Tensor:
    """Every query's inner product with every key, plus `bias` (R, B, T)."""
    replicas, n, width = keys_RTW.shape
    batch = queries_RBW.shape[1]
    out_RBT = queries_RBW.new_empty(replicas, batch, n)
    most, tiles = _queries(batch), BLOCKS if n <= BLOCK else SCORES
    stretches = triton.cdiv(n, tiles["ROWS"] * tiles["REPEATS"])
    scores[(triton.cdiv(batch, most), stretches, replicas)](
        keys_RTW,
        queries_RBW,
        out_RBT,
        n,
        _samples(keys_RTW),
        batch,
        bias,
        WIDTH=width,
        BATCH=most,
        num_warps=WARPS,
        **tiles,
    )
    return out_RBT


def launch_mix(out_RBW: torch.Tensor, weights_RBT: torch.Tensor, values_RTW: torch.Tensor) -> None:
    """Add the sum of the values, times each query's weights, to `out_RBW` in place."""
    replicas, n, width = values_RTW.shape
    batch = out_RBW.shape[1]
    most = _queries(batch)
    mix[(triton.cdiv(batch, most), triton.cdiv(width, MIX["TILE"]), replicas)](
        weights_RBT,
        values_RTW,
        out_RBW,
        n,
        _samples(values_RTW),
        batch,
        weights_RBT.stride(0),
        weights_RBT.stride(1),
        WIDTH=width,
        BATCH=most,
        num_warps=WARPS,
        **MIX,
    )


def _queries(batch: int) -> int:
    """Queries of one reading: a power of two, so that few kernels do for all batch sizes."""
    return min(FEW, int(triton.next_power_of_2(batch)))


def _samples(history_RTW: torch.Tensor) -> int:
    """Rows from one replica's history to the next's: more than T while it grows."""
    return history_RTW.stride(0) // history_RTW.shape[2]
