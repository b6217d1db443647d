"""The layers whose per-example gradient norms are known: from input and output gradient to norms.

Every function takes a module, its input and the gradient by its output, (B, ...) both, and gives
the norms of its weight and, where there is one, its bias. What is a position and what a feature
differs by layer; `squares` has the formulas.

Shapes: B examples, T positions, I inputs, O outputs, W features of a norm, G examples times groups,
K rows of a convolution's kernel.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from batchlab.probes import squares
from batchlab.spec import UserError

Norms = list[Tensor]  # of weight and, where there is one, bias: (B) each


def _linear(module: nn.Linear, a: Tensor, d: Tensor) -> Norms:
    if d.ndim == 2:
        bias_B = squares.norms(d)
        weight_B = squares.norms(a).mul_(bias_B)
    else:
        d_BTO = squares.positions(d)
        weight_B = squares.linear(squares.positions(a), d_BTO)
        bias_B = squares.bias(d_BTO) if module.bias is not None else weight_B
    return [weight_B] if module.bias is None else [weight_B, bias_B]


def _convolution(module: nn.Conv1d | nn.Conv2d, a: Tensor, d: Tensor) -> Norms:
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    if a.ndim != 2 + len(module.kernel_size):
        raise UserError(f"an input of {a.ndim} dimensions has no batch of examples")
    a = F.pad(a, module._reversed_padding_repeated_twice, mode=mode)
    kernel, stride, dilation = module.kernel_size, module.stride, module.dilation
    if isinstance(module, nn.Conv1d):
        a, kernel, stride, dilation = a[:, :, None], (1, *kernel), (1, *stride), (1, *dilation)
    d_BOT = squares.wide(d.flatten(2))
    d_GTO = d_BOT.unflatten(1, (module.groups, -1)).flatten(0, 1).mT
    rows = squares.kernel_rows(a, kernel, stride, dilation, module.groups)
    row_KG = torch.stack([squares.linear(row_GTI, d_GTO) for row_GTI in rows])
    norm_G = torch.linalg.vector_norm(row_KG, dim=0)
    weight_B = squares.norms(norm_G.unflatten(0, (-1, module.groups)))
    return [weight_B] if module.bias is None else [weight_B, squares.norms(d_BOT.sum(2))]


def _embedding(module: nn.Embedding, a: Tensor, d: Tensor) -> Norms:
    index_BT = a.flatten(1) if a.ndim > 1 else a[:, None]
    d_BTO = squares.positions(d if d.ndim > 2 else d[:, None])
    return [squares.embedding(index_BT, d_BTO, module.padding_idx)]


def _norm(module: nn.LayerNorm | nn.RMSNorm | nn.GroupNorm, a: Tensor, d: Tensor) -> Norms:
    a, d = squares.wide(a), squares.wide(d)
    if isinstance(module, nn.GroupNorm):
        unit = F.group_norm(a, module.num_groups, eps=module.eps)
        unit_BTW, d_BTW = (x.unsqueeze(-1).flatten(2).mT for x in (unit, d))  # or (B, W) alone
    else:
        shape = list(module.normalized_shape)
        if isinstance(module, nn.LayerNorm):
            unit = F.layer_norm(a, shape, eps=module.eps)
        else:
            unit = F.rms_norm(a, shape, eps=module.eps)
        unit_BTW, d_BTW = (x.flatten(-len(shape)).unsqueeze(1).flatten(1, -2) for x in (unit, d))
    weight_B = squares.gain(unit_BTW, d_BTW)
    has_bias = getattr(module, "bias", None) is not None  # RMSNorm has none
    return [weight_B, squares.bias(d_BTW)] if has_bias else [weight_B]


LAYERS: dict[type[nn.Module], Callable[..., Norms]] = {
    nn.Linear: _linear,
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.Embedding: _embedding,
    nn.LayerNorm: _norm,
    nn.RMSNorm: _norm,
    nn.GroupNorm: _norm,
}
