"""What a perceptron's step does between its products, for CUDA: three Triton kernels.

All go by rows without gaps, and sum in one fixed order whatever else the GPU does.

Shapes: B samples of a batch, O outputs of a layer.
"""

import torch
import triton
import triton.language as tl

BLOCK = 1024  # numbers of a program of `rectify`
ROWS, TILE = 64, 16  # of a batch at a time; columns of a program of `descend`


@triton.jit(do_not_specialize=["count"])
def rectify(z, bias, count, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """z = what of z + bias is above zero; `z` (B, WIDTH), `count` numbers. Grid: blocks of them."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    real = at < count
    moved = tl.load(z + at, real, 0.0) + tl.load(bias + at % WIDTH, real, 0.0)
    tl.store(z + at, tl.maximum(moved, 0.0, propagate_nan=tl.PropagateNan.ALL), real)


@triton.jit(do_not_specialize=["batch", "scale"])
def residual(
    z,
    bias,
    classes,
    sums,
    sign,
    batch,
    scale,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
    KEEP: tl.constexpr,
):
    """z = the gradient of the mean loss by logits z + bias; sums = KEEP sums + scale its sum.

    `z` (batch, WIDTH), `sign` (1): the sum of it all, finite just where the loss is. One program.
    """
    columns = tl.arange(0, PADDED)
    inside = columns < WIDTH
    moved = tl.load(bias + columns, inside, 0.0)
    total = tl.zeros((ROWS, PADDED), z.dtype.element_ty)
    for start in range(0, batch, ROWS):
        rows = start + tl.arange(0, ROWS)
        real = (rows[:, None] < batch) & inside[None, :]
        at = rows[:, None] * WIDTH + columns[None, :]
        logits = tl.load(z + at, real, float("-inf")) + moved[None, :]
        logits = tl.where(rows[:, None] < batch, logits, 0.0)
        powers = tl.exp(logits - tl.max(logits, 1)[:, None])
        right = tl.load(classes + rows, rows < batch, 0)
        d = powers / tl.sum(powers, 1)[:, None] - (columns[None, :] == right[:, None])
        d = tl.where(real, d / batch, 0.0)
        tl.store(z + at, d, real)
        total += d
    by_class = tl.sum(total, 0)
    change = scale * by_class
    if KEEP:
        change += tl.load(sums + columns, inside, 0.0)
    tl.store(sums + columns, change, inside)
    tl.store(sign, tl.sum(by_class, 0))


@triton.jit(do_not_specialize=["batch", "scale"])
def descend(
    back,
    h,
    sums,
    batch,
    scale,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    KEEP: tl.constexpr,
):
    """back = back where h is not silent; sums = KEEP sums + scale its sum over the batch.

    `back` and `h` (batch, WIDTH). Grid: tiles of columns.
    """
    columns = tl.program_id(0) * TILE + tl.arange(0, TILE)
    inside = columns < WIDTH
    total = tl.zeros((ROWS, TILE), back.dtype.element_ty)
    for start in range(0, batch, ROWS):
        rows = start + tl.arange(0, ROWS)
        real = (rows[:, None] < batch) & inside[None, :]
        at = rows[:, None] * WIDTH + columns[None, :]
        d = tl.where(tl.load(h + at, real, 0.0) <= 0, 0.0, tl.load(back + at, real, 0.0))
        tl.store(back + at, d, real)
        total += d
    change = scale * tl.sum(total, 0)
    if KEEP:
        change += tl.load(sums + columns, inside, 0.0)
    tl.store(sums + columns, change, inside)


def launch_rectify(z_BO: torch.Tensor, bias_O: torch.Tensor) -> None:
    """Add the bias and keep what is above zero, in place."""
    count = z_BO.numel()
    rectify[(triton.cdiv(count, BLOCK),)](z_BO, bias_O, count, WIDTH=len(bias_O), BLOCK=BLOCK)


def launch_residual(
    z_BO: torch.Tensor,
    bias_O: torch.Tensor,
    y_B: torch.Tensor,
    sums_O: torch.Tensor,
    sign: torch.Tensor,
    scale: float,
    *,
    keep: bool,
) -> None:
    """Logits become the gradient of the mean loss by them, in place; its sum goes to `sums_O`."""
    batch, width = z_BO.shape
    padded = max(2, int(triton.next_power_of_2(width)))
    residual[(1,)](
        z_BO,
        bias_O,
        y_B,
        sums_O,
        sign,
        batch,
        scale,
        WIDTH=width,
        PADDED=padded,
        ROWS=max(1, ROWS * TILE // padded),
        KEEP=keep,
    )


def launch_descend(
    back_BO: torch.Tensor, h_BO: torch.Tensor, sums_O: torch.Tensor, scale: float, *, keep: bool
) -> None:
    """A ReLU's gradient by what came out of it, in place; its sum goes to `sums_O`."""
    batch, width = back_BO.shape
    descend[(triton.cdiv(width, TILE),)](
        back_BO, h_BO, sums_O, batch, scale, WIDTH=width, ROWS=ROWS, TILE=TILE, KEEP=keep
    )
