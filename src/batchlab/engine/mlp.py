"""The multilayer perceptron's gradient in closed form, for a stack of replicas.

Same algorithm as autograd on `Linear, ReLU, ..., Linear` with the mean negative log-likelihood,
without a tape and without materialising gradients: for a layer with inputs h and output
gradients d the weight gradient is d^T h, so a step adds -rate d^T h to the weights in place.

Shapes: R replicas, B samples of a batch, I inputs and O outputs of a layer.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from batchlab.engine.products import FULL, Arithmetic


def linear_layers(model: nn.Module) -> list[nn.Linear] | None:
    """The layers of a plain `Linear, ReLU, ..., Linear` stack; `None` for any other model."""
    if not isinstance(model, nn.Sequential):
        return None
    modules = list(model)
    linear, relu = modules[0::2], modules[1::2]
    if len(linear) != len(relu) + 1 or not all(type(m) is nn.ReLU for m in relu):
        return None
    layers = [m for m in linear if type(m) is nn.Linear and m.bias is not None]
    return layers if len(layers) == len(linear) else None


def stack_of_one(layers: Sequence[nn.Linear]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Weights (1, O, I) and biases (1, O) that share the parameters' memory."""
    return (
        [m.weight.detach().unsqueeze(0) for m in layers],
        [m.bias.detach().unsqueeze(0) for m in layers],
    )


def residual(z_RBO: torch.Tensor, y_RB: torch.Tensor) -> torch.Tensor:
    """The gradient of each sample's loss with respect to its logits (R, B, O)."""
    d = z_RBO.softmax(-1)
    return d.scatter_add_(-1, y_RB.unsqueeze(-1), d.new_full((), -1.0).expand(*y_RB.shape, 1))


def forward(
    weights_ROI: Sequence[torch.Tensor],
    biases_RO: Sequence[torch.Tensor],
    x_RBI: torch.Tensor,
    arithmetic: Arithmetic = FULL,
) -> Iterator[torch.Tensor]:
    """Yield each layer's output (R, B, O): what of it is above zero, and the last one's whole."""
    h, last = x_RBI, len(weights_ROI) - 1
    for index, (w, b) in enumerate(zip(weights_ROI, biases_RO, strict=True)):
        h = arithmetic.affine(h, w, b, index < last)
        yield h


def backward(
    weights_ROI: Sequence[torch.Tensor],
    biases_RO: Sequence[torch.Tensor],
    x_RBI: torch.Tensor,
    y_RB: torch.Tensor,
    arithmetic: Arithmetic = FULL,
    scale: torch.Tensor | float | None = None,
) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """Yield `(layer, d_RBO, h_RBI)` from the last layer to the first, for the mean loss.

    A layer's weight gradient is `d.mT @ h`, its bias gradient `d.sum(1)`. What lies below a layer
    is computed before the layer is yielded, so the caller may update it in place at once. Where
    `arithmetic` rounds, activations and gradients between layers are as it leaves them. With
    `scale` (a number, or one a replica) everything is that times the gradient of the loss's sum.
    """
    activations = [x_RBI, *forward(weights_ROI, biases_RO, x_RBI, arithmetic)]
    last = len(weights_ROI) - 1
    d = residual(activations.pop().to(x_RBI.dtype), y_RB)
    if scale is None:
        d.div_(y_RB.shape[1])
    else:
        d.mul_(scale)
    for index in range(last, -1, -1):
        h = activations[index]
        below = d
        if index:
            # threshold_backward zeroes where the ReLU's output was zero: mask and product in one
            below = arithmetic.product(d, weights_ROI[index])
            torch.ops.aten.threshold_backward.grad_input(below, h, 0.0, grad_input=below)
        yield index, d, h
        d = below
