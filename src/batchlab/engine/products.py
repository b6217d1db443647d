"""Matrix products at this CPU's own rate.

PyTorch's float32 products on a CPU go to MKL, which on CPUs not made by its maker uses vectors of
256 bits, half of what some of these have; the oneDNN that every x86 build of PyTorch carries does
not (decision 0004). It is reached through the operator that compiled models use, where there is one
and the product is worth its overhead, and by PyTorch's own products otherwise: float64, CUDA,
stacks of more than one replica, other builds.

Shapes: R replicas, M and N rows and columns of the product, K what is summed over.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple, Self

import torch

from batchlab.spec import Matmul

Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def _wider_than_mkl() -> bool:
    """Whether this CPU is known to multiply 512 bits at once where MKL gives it 256: AMD's Zen 5.

    By the CPU's name and not by a measurement, which could choose another way the next time.
    """
    try:
        told = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    family = re.search(r"^cpu family\s*: (\d+)$", told, re.MULTILINE)
    return "AuthenticAMD" in told and family is not None and int(family[1]) >= 26


_WIDER = _wider_than_mkl()
_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
# Its bf16 is for CPUs with vectors of 512 bits or bf16 of their own, PyTorch's for all.
_ONEDNN_BF16 = _ONEDNN and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
# Where oneDNN's call, some 18 us longer than MKL's, is worth it by measurement (decision 0006).
_LEAST = 64  # columns, and rows that are summed over
_LEAST_WORK = 2**21 if _WIDER else 2**24  # multiplications
_MANY_ROWS = 256  # where a layer of few units and a sum of rows gain by another product of MKL's


@contextmanager
def multiplying(matmul: Matmul) -> Iterator[None]:
    """Where products of float32 on CUDA round their factors to TF32 just if that is asked for."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if matmul == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def product(a_RMK: torch.Tensor, b_RKN: torch.Tensor) -> torch.Tensor:
    """a b of each replica, for any strides (R, M, N)."""
    if not _onednn(a_RMK, b_RKN):
        return torch.bmm(a_RMK, b_RKN)
    return _layer(a_RMK, b_RKN.mT)


def rounded_product(a_RMK: torch.Tensor, b_RKN: torch.Tensor) -> torch.Tensor:
    """a b of each replica by factors rounded to bf16 and summed in single precision (R, M, N).

    The product is in bf16 as well; half of the memory and, where the processor multiplies bf16, at
    a multiple of the rate.
    """
    a, b = a_RMK.bfloat16(), b_RKN.bfloat16()
    if len(a) > 1:
        return torch.bmm(a, b)
    return torch.mm(a[0], b[0]).unsqueeze(0)  # of a transposed factor a fifth faster than a stack


def affine(
    h_RMK: torch.Tensor, w_RNK: torch.Tensor, b_RN: torch.Tensor, relu: bool
) -> torch.Tensor:
    """A dense layer of each replica: h w^T + b, or what of it is above zero (R, M, N)."""
    if _onednn(h_RMK, w_RNK.mT):
        return _layer(h_RMK, w_RNK, b_RN, relu)
    if _many_rows(h_RMK) and w_RNK.shape[1] < _LEAST:
        # MKL has few long rows twice as fast as few long columns.
        z_NM = torch.addmm(b_RN[0].unsqueeze(1), w_RNK[0], h_RMK[0].mT)
        z_RMN = z_NM.mT.contiguous().unsqueeze(0)
        return z_RMN.relu_() if relu else z_RMN
    return _in_turn(product, h_RMK, w_RNK, b_RN, relu)


def rounded_affine(
    h_RMK: torch.Tensor, w_RNK: torch.Tensor, b_RN: torch.Tensor, relu: bool
) -> torch.Tensor:
    """The same by factors rounded to bf16, in bf16."""
    h, w, b = h_RMK.bfloat16(), w_RNK.bfloat16(), b_RN.bfloat16()
    if _ONEDNN_BF16 and h.device.type == "cpu" and len(h) == 1:
        return _layer(h, w, b, relu)
    return _in_turn(torch.bmm, h, w, b, relu)


def _in_turn(
    multiply: Product, h_RMK: torch.Tensor, w_RNK: torch.Tensor, b_RN: torch.Tensor, relu: bool
) -> torch.Tensor:
    z = multiply(h_RMK, w_RNK.mT).add_(b_RN.unsqueeze(1))
    return z.relu_() if relu else z


class Arithmetic(NamedTuple):
    """How a perceptron multiplies: a product of stacks, and a layer of one."""

    product: Product
    affine: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, bool], torch.Tensor]

    @classmethod
    def of(cls, matmul: Matmul) -> Self:
        """The fastest that rounds as `matmul` says."""
        return cls(rounded_product, rounded_affine) if matmul == "bf16" else cls(product, affine)


FULL = Arithmetic(product, affine)
STACKED = Arithmetic(torch.bmm, partial(_in_turn, torch.bmm))  # no replica's bits depend on others


def add_product(c_RMN: torch.Tensor, a_RMK: torch.Tensor, b_RKN: torch.Tensor) -> torch.Tensor:
    """c + a b of each replica (R, M, N); `c` may be overwritten: go on with what is returned."""
    if not _onednn(a_RMK, b_RKN):
        return c_RMN.baddbmm_(a_RMK, b_RKN)
    linear = torch.ops.mkldnn._linear_pointwise.binary
    sum_MN: torch.Tensor = linear(a_RMK[0], c_RMN[0], b_RKN[0].mT, None, "add")
    return sum_MN.unsqueeze(0)


def change(c_RMN: torch.Tensor, a_RMK: torch.Tensor, b_RKN: torch.Tensor, factor: float) -> None:
    """Add `factor` a b of each replica to c in place (R, M, N)."""
    # oneDNN can't add in place: it pays only where it is far ahead.
    if _WIDER and _onednn(a_RMK, b_RKN):
        c_RMN.add_(product(a_RMK, b_RKN), alpha=factor)
    else:
        c_RMN.baddbmm_(a_RMK, b_RKN, alpha=factor)


def add_rows(c_RN: torch.Tensor, rows_RMN: torch.Tensor, factor: float) -> None:
    """Add `factor` times the sum of each replica's rows to c in place (R, N)."""
    if _many_rows(rows_RMN) and rows_RMN.dtype == c_RN.dtype:
        ones_1M = c_RN.new_ones(1, rows_RMN.shape[1])
        c_RN.addmm_(ones_1M, rows_RMN[0], alpha=factor)
    else:
        c_RN.add_(rows_RMN.sum(1), alpha=factor)


def _layer(
    h_RMK: torch.Tensor,
    w_RNK: torch.Tensor,
    b_RN: torch.Tensor | None = None,
    relu: bool = False,
) -> torch.Tensor:
    """A dense layer of the one replica, by oneDNN: its output goes to memory once."""
    linear = torch.ops.mkldnn._linear_pointwise
    bias = None if b_RN is None else b_RN[0]
    z_MN: torch.Tensor = linear(h_RMK[0], w_RNK[0], bias, "relu" if relu else "none", [], "")
    return z_MN.unsqueeze(0)


def _many_rows(a_RMN: torch.Tensor) -> bool:
    return len(a_RMN) == 1 and a_RMN.is_cpu and a_RMN.shape[1] >= _MANY_ROWS


def _onednn(a_RMK: torch.Tensor, b_RKN: torch.Tensor) -> bool:
    return (
        _ONEDNN
        and a_RMK.dtype == torch.float32
        and a_RMK.device.type == "cpu"
        and len(a_RMK) == 1
        and min(a_RMK.shape[2], b_RKN.shape[2]) >= _LEAST
        and a_RMK.numel() * b_RKN.shape[2] >= _LEAST_WORK
    )
