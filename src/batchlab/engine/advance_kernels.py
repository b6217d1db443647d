"""Down through a layer at one step and up through it at the next, for CUDA: one Triton kernel.

A program has a chunk of the layer's inputs, whose weights' rows it takes a tile at a time: the
step's updates, each times a row, add up to what comes down to that row's unit; the unit's input at
the next step follows; and that times the same row is its part of the next output. Rows of units
that are silent at both steps are not read. The programs' parts of the output are added up
afterwards, in their order. Everything is in double, in one fixed order whatever the number of
replicas.

Shapes: R replicas, B samples of the step, N of the next one, I and O inputs and outputs, C chunks.
"""

from typing import Any

import torch
import triton
import triton.language as tl

MOST = 1024  # outputs: a row is in a program's registers, and so are sums of its length
# By samples of a step: how many inputs a program has, how many at a time, and its warps.
TILES: dict[int, dict[str, Any]] = {
    1: {"CHUNK": 128, "ROWS": 4, "STAGES": 3, "HOLD": True, "num_warps": 4},
    2: {"CHUNK": 128, "ROWS": 4, "STAGES": 2, "HOLD": False, "num_warps": 4},
    8: {
        "CHUNK": 256,
        "ROWS": 16,
        "SPLIT": 8,
        "SLICE": 64,
        "HOLD": True,
        "STAGES": 1,
        "num_warps": 8,
    },
}


@triton.jit(
    do_not_specialize=["batch", "following", "gram_replica", "gram_row"],
    do_not_specialize_on_alignment=["gram"],
)
def advance(
    weights,
    updates,
    held,
    back,
    known,
    gram,
    below,
    upward,
    parts,
    batch,
    following,
    gram_replica,
    gram_row,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    WIDTH: tl.constexpr,
    BATCH: tl.constexpr,
    CHUNK: tl.constexpr,
    ROWS: tl.constexpr,
    STAGES: tl.constexpr,
    HOLD: tl.constexpr,
):
    """below = back + updates weights' where `held` is not silent; upward = what of known + gram
    below is above zero; parts = upward weights, by chunk.

    `weights` (R, INPUTS, OUTPUTS), `updates` (R, batch, OUTPUTS), `held`, `back` and `below`
    (R, batch, INPUTS), `known` and `upward` (R, following, INPUTS), `parts` (R, C, following,
    OUTPUTS); of `gram` (R, following, batch) the strides are given. Grid: C, R. `WIDTH` is a power
    of two that `OUTPUTS` fits in, `BATCH` one that both batches do.
    """
    chunk = tl.program_id(0)
    replica = tl.program_id(1).to(tl.int64)
    weights += replica * INPUTS * OUTPUTS
    updates += replica * batch * OUTPUTS
    held += replica * batch * INPUTS
    back += replica * batch * INPUTS
    below += replica * batch * INPUTS
    known += replica * following * INPUTS
    upward += replica * following * INPUTS
    parts += (replica * tl.num_programs(0) + chunk) * following * OUTPUTS
    gram += replica * gram_replica
    columns = tl.arange(0, WIDTH)
    inside = columns < OUTPUTS
    steps = ()
    for b in tl.static_range(BATCH if HOLD else 0):
        steps = steps + (tl.load(updates + b * OUTPUTS + columns, inside & (b < batch), 0.0),)
    sums = (tl.zeros((WIDTH,), tl.float64),) * BATCH
    for start in tl.range(0, CHUNK, ROWS, num_stages=STAGES):
        rows = chunk * CHUNK + start + tl.arange(0, ROWS)
        real = rows < INPUTS
        needed = rows < 0
        before = ()
        after = ()
        for b in tl.static_range(BATCH):
            h = tl.load(held + b * INPUTS + rows, real & (b < batch), 0.0)
            z = tl.load(known + b * INPUTS + rows, real & (b < following), 0.0)
            needed = needed | ((h <= 0) == 0) | ((z <= 0) == 0)  # what is not a number too
            before = before + (h,)
            after = after + (z,)
        at = rows[:, None] * OUTPUTS + columns[None, :]
        tile = tl.load(weights + at, needed[:, None] & inside[None, :], 0.0)
        for b in tl.static_range(BATCH):
            mine = real & (b < batch)
            if HOLD:
                step = steps[b]
            else:
                step = tl.load(updates + b * OUTPUTS + columns, inside & (b < batch), 0.0)
            u = tl.load(back + b * INPUTS + rows, mine, 0.0) + tl.sum(tile * step[None, :], 1)
            u = tl.where(before[b] <= 0, 0.0, u)
            tl.store(below + b * INPUTS + rows, u, mine)
            moved = ()
            for n in tl.static_range(BATCH):
                factor = tl.load(gram + n * gram_row + b, (n < following) & (b < batch), 0.0)
                moved = moved + (after[n] + factor * u,)
            after = moved
        more = ()
        for n in tl.static_range(BATCH):
            h = tl.maximum(after[n], 0.0, propagate_nan=tl.PropagateNan.ALL)
            tl.store(upward + n * INPUTS + rows, h, real & (n < following))
            more = more + (sums[n] + tl.sum(tile * h[:, None], 0),)
        sums = more
    for n in tl.static_range(BATCH):
        tl.store(parts + n * OUTPUTS + columns, sums[n], inside & (n < following))


@triton.jit(
    do_not_specialize=["batch", "following", "gram_replica", "gram_row"],
    do_not_specialize_on_alignment=["gram"],
)
def advance_many(
    weights,
    updates,
    held,
    back,
    known,
    gram,
    below,
    upward,
    parts,
    batch,
    following,
    gram_replica,
    gram_row,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    WIDTH: tl.constexpr,
    BATCH: tl.constexpr,
    CHUNK: tl.constexpr,
    ROWS: tl.constexpr,
    SPLIT: tl.constexpr,
    SLICE: tl.constexpr,
    HOLD: tl.constexpr,
    STAGES: tl.constexpr,
):
    """The same by tensor cores, a tile of rows read twice in short succession.

    The second time it comes from the cache. Each of `SPLIT` warps has its columns, `SLICE` of them
    at a time.
    """
    chunk = tl.program_id(0)
    replica = tl.program_id(1).to(tl.int64)
    weights += replica * INPUTS * OUTPUTS
    updates += replica * batch * OUTPUTS
    held += replica * batch * INPUTS
    back += replica * batch * INPUTS
    below += replica * batch * INPUTS
    known += replica * following * INPUTS
    upward += replica * following * INPUTS
    parts += (replica * tl.num_programs(0) + chunk) * following * OUTPUTS
    gram += replica * gram_replica
    EACH: tl.constexpr = WIDTH // SPLIT
    TURNS: tl.constexpr = EACH // SLICE
    columns = tl.arange(0, SPLIT)[:, None] * EACH + tl.arange(0, SLICE)[None, :]
    b = tl.arange(0, BATCH)
    mine = b < batch
    theirs = b < following
    factors = tl.load(
        gram + b[None, :] * gram_row + b[:, None], mine[:, None] & theirs[None, :], 0.0
    )
    steps = ()
    sums = ()
    for turn in tl.static_range(TURNS):
        at = columns + turn * SLICE
        if HOLD:
            known_step = mine[None, None, :] & (at < OUTPUTS)[:, :, None]
            place = b[None, None, :] * OUTPUTS + at[:, :, None]
            steps = steps + (tl.load(updates + place, known_step, 0.0),)
        sums = sums + (tl.zeros((SPLIT, SLICE, BATCH), tl.float64),)
    for start in tl.range(0, CHUNK, ROWS, num_stages=STAGES):
        rows = chunk * CHUNK + start + tl.arange(0, ROWS)
        real = rows < INPUTS
        down = tl.zeros((SPLIT, ROWS, BATCH), tl.float64)
        for turn in tl.static_range(TURNS):
            at = columns + turn * SLICE
            inside = real[None, :, None] & (at < OUTPUTS)[:, None, :]
            place = rows[None, :, None] * OUTPUTS + at[:, None, :]
            tile = tl.load(weights + place, inside, 0.0)
            if HOLD:
                step = steps[turn]
            else:
                known_step = mine[None, None, :] & (at < OUTPUTS)[:, :, None]
                place = b[None, None, :] * OUTPUTS + at[:, :, None]
                step = tl.load(updates + place, known_step, 0.0)
            down = tl.dot(tile, step, down, out_dtype=tl.float64)
        place = b[None, :] * INPUTS + rows[:, None]
        now = mine[None, :] & real[:, None]
        then = theirs[None, :] & real[:, None]
        h = tl.load(held + place, now, 0.0)
        u = tl.load(back + place, now, 0.0) + tl.sum(down, 0)
        u = tl.where(h <= 0, 0.0, u)
        tl.store(below + place, u, now)
        moved = tl.sum(u[:, :, None] * factors[None, :, :], 1)
        z = tl.load(known + place, then, 0.0) + moved
        h = tl.maximum(z, 0.0, propagate_nan=tl.PropagateNan.ALL)
        tl.store(upward + place, h, then)
        wide = tl.broadcast_to(h[None, :, :], (SPLIT, ROWS, BATCH))
        more = ()
        for turn in tl.static_range(TURNS):
            at = columns + turn * SLICE
            inside = real[None, None, :] & (at < OUTPUTS)[:, :, None]
            place = rows[None, None, :] * OUTPUTS + at[:, :, None]
            tile = tl.load(weights + place, inside, 0.0)
            more = more + (tl.dot(tile, wide, sums[turn], out_dtype=tl.float64),)
        sums = more
    for turn in tl.static_range(TURNS):
        at = columns + turn * SLICE
        inside = theirs[None, None, :] & (at < OUTPUTS)[:, :, None]
        tl.store(parts + b[None, None, :] * OUTPUTS + at[:, :, None], sums[turn], inside)


def fits(weight_RIO: torch.Tensor) -> bool:
    """Whether the kernel is for weights of this shape."""
    return weight_RIO.shape[2] <= MOST


def launch(
    weight_RIO: torch.Tensor,
    u_RBO: torch.Tensor,
    h_RBI: torch.Tensor,
    back_RBI: torch.Tensor,
    z_RNI: torch.Tensor,
    gram_RNB: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Below (R, B, I), the next activations (R, N, I) and the outputs by them (R, N, O)."""
    replicas, inputs, outputs = weight_RIO.shape
    batch, following = u_RBO.shape[1], z_RNI.shape[1]
    largest = max(batch, following)
    most = min(size for size in TILES if size >= largest)
    tiles = TILES[most]
    narrowest = tiles.get("SPLIT", 1) * tiles.get("SLICE", 16)
    chunks = triton.cdiv(inputs, tiles["CHUNK"])
    below_RBI, next_RNI = torch.empty_like(back_RBI), torch.empty_like(z_RNI)
    parts_RCNO = weight_RIO.new_empty(replicas, chunks, following, outputs)
    kernel = advance_many if most > 2 else advance
    kernel[(chunks, replicas)](
        weight_RIO,
        u_RBO,
        h_RBI,
        back_RBI,
        z_RNI,
        gram_RNB,
        below_RBI,
        next_RNI,
        parts_RCNO,
        batch,
        following,
        gram_RNB.stride(0),
        gram_RNB.stride(1),
        INPUTS=inputs,
        OUTPUTS=outputs,
        WIDTH=max(narrowest, int(triton.next_power_of_2(outputs))),
        BATCH=most,
        **tiles,
    )
    return below_RBI, next_RNI, parts_RCNO.sum(1)
