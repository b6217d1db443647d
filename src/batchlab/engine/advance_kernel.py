"""Down through a layer at one step and up through it at the next, for CUDA: one Triton kernel.

A program has a chunk of the layer's inputs, whose weights' rows it takes a tile at a time: the
step's updates, each times a row, add up to what comes down to that row's unit; the unit's input at
the next step follows; and that times the same row is its part of the next output. Rows of units
that are silent at both steps are not read. The programs' parts of the output are added up
afterwards, in their order. Everything is in double, in one fixed order whatever the number of
replicas.

Shapes: R replicas, B samples of the step, N of the next one, I and O inputs and outputs, C chunks.
"""

import torch
import triton
import triton.language as tl

MOST = 1024  # outputs: a row is in a program's registers, and so are sums of its length
# By measurement (docs/engine.md): inputs of a program and of a tile, its warps, and, by the samples
# of a step, how many tiles are under way.
CHUNK, ROWS, WARPS = 128, 4, 4
STAGES = {1: 3, 2: 2}


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
    for b in tl.static_range(BATCH):
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
            u = tl.load(back + b * INPUTS + rows, mine, 0.0) + tl.sum(tile * steps[b][None, :], 1)
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
    most, chunks = max(batch, following), triton.cdiv(inputs, CHUNK)
    below_RBI, next_RNI = torch.empty_like(back_RBI), torch.empty_like(z_RNI)
    parts_RCNO = weight_RIO.new_empty(replicas, chunks, following, outputs)
    advance[(chunks, replicas)](
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
        WIDTH=max(16, int(triton.next_power_of_2(outputs))),
        BATCH=most,
        CHUNK=CHUNK,
        ROWS=ROWS,
        STAGES=STAGES[most],
        num_warps=WARPS,
    )
    return below_RBI, next_RNI, parts_RCNO.sum(1)
