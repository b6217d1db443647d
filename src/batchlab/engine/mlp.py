"""The multilayer perceptron's gradient in closed form, for a stack of replicas.

Same algorithm as autograd on `Linear, ReLU, ..., Linear` with the mean negative log-likelihood,
without a tape and without materialising gradients: for a layer with inputs h and output
gradients d the weight gradient is d^T h, so a step adds -rate d^T h to the weights in place.

Shapes: R replicas, B samples of a batch, I inputs and O outputs of a layer.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn

from batchlab.engine.products import product

Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


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


def stack(layers: Sequence[nn.Linear], replicas: int) -> tuple[list[torch.Tensor], ...]:
    """Weights (R, O, I) and biases (R, O): `replicas` copies of each layer's parameters."""

    def copies(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach().expand(replicas, *tensor.shape).clone()

    return [copies(m.weight) for m in layers], [copies(m.bias) for m in layers]


def residual(z_RBO: torch.Tensor, y_RB: torch.Tensor) -> torch.Tensor:
    """The gradient of each sample's loss with respect to its logits (R, B, O)."""
    d = z_RBO.softmax(-1)
    return d.scatter_add_(-1, y_RB.unsqueeze(-1), d.new_full((), -1.0).expand(*y_RB.shape, 1))


def backward(
    weights_ROI: Sequence[torch.Tensor],
    biases_RO: Sequence[torch.Tensor],
    x_RBI: torch.Tensor,
    y_RB: torch.Tensor,
    multiply: Product = product,
    scale: torch.Tensor | float | None = None,
) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """Yield `(layer, d_RBO, h_RBI)` from the last layer to the first, for the mean loss.

    A layer's weight gradient is `d.mT @ h`, its bias gradient `d.sum(1)`. What lies below a layer
    is computed before the layer is yielded, so the caller may update it in place at once. Where
    `multiply` rounds, activations and gradients between layers are as it leaves them. With `scale`
    (a number, or one a replica) everything is that times the gradient of the loss's sum.
    """
    activations = [x_RBI]
    last = len(weights_ROI) - 1
    for index, (w, b) in enumerate(zip(weights_ROI, biases_RO, strict=True)):
        z = multiply(activations[-1], w.mT).add_(b.unsqueeze(1))
        activations.append(z if index == last else z.relu_())
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
            below = torch.ops.aten.threshold_backward(multiply(d, weights_ROI[index]), h, 0.0)
        yield index, d, h
        d = below
