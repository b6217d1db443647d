"""A perceptron's steps on CUDA, with one kernel between two products instead of several.

Small steps on a GPU are as fast as their kernels can be started, and most of these are no products
(`pointwise_kernels.py` has what they are instead).

Shapes: N samples of a stretch of steps, B of a batch, I and O inputs and outputs of a layer.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from batchlab.engine.launching import can_launch
from batchlab.engine.step import ClosedForm, InPlaceSGD, gradient_of
from batchlab.spec import batch_slices

CLASSES = 1024  # at most: one program has a whole row of them


def backward(
    weights_OI: Sequence[torch.Tensor],
    biases_O: Sequence[torch.Tensor],
    x_BI: torch.Tensor,
    y_B: torch.Tensor,
    sums_O: Sequence[torch.Tensor],
    sign: torch.Tensor,
    scale: float,
    *,
    keep: bool,
) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """Yield `(layer, d_BO, h_BI)` from the last layer to the first, for the mean loss.

    As `mlp.backward`, but that the biases' gradients times `scale` are written to `sums_O`, or
    added where these `keep` what they hold. What is written to `sign` (1) is finite just where the
    loss is.
    """
    from batchlab.engine import pointwise_kernels as kernels

    activations = [x_BI]
    for weight_OI, bias_O in zip(weights_OI[:-1], biases_O[:-1], strict=True):
        z_BO = torch.mm(activations[-1], weight_OI.mT)
        kernels.launch_rectify(z_BO, bias_O)
        activations.append(z_BO)
    d = torch.mm(activations[-1], weights_OI[-1].mT)
    kernels.launch_residual(d, biases_O[-1], y_B, sums_O[-1], sign, scale, keep=keep)
    for index in range(len(weights_OI) - 1, -1, -1):
        h = activations[index]
        below = torch.mm(d, weights_OI[index]) if index else d
        yield index, d, h
        if index:
            kernels.launch_descend(below, h, sums_O[index - 1], scale, keep=keep)
        d = below


class PointwiseSGD(InPlaceSGD):
    """Plain SGD on a perceptron: gradients go straight into the weights."""

    def steps(self, x_NI: torch.Tensor, y_N: torch.Tensor, size: int) -> None:
        """Batch by batch."""
        weights, biases = ([of[0] for of in both] for both in (self._weights, self._biases))
        for rows in batch_slices(len(x_NI), size):
            x, y, sign = x_NI[rows], y_N[rows], x_NI.new_empty(1)
            passed = backward(weights, biases, x, y, biases, sign, -self._rate, keep=True)
            for index, d, h in passed:
                weights[index].addmm_(d.mT, h, alpha=-self._rate)
            self._signs.append(sign)


class PointwiseOptimizer(ClosedForm):
    """Any optimizer on a perceptron, whose gradients are written where the optimizer reads them."""

    def steps(self, x_NI: torch.Tensor, y_N: torch.Tensor, size: int) -> None:
        """Batch by batch."""
        weights, biases = ([of[0] for of in both] for both in (self._weights, self._biases))
        of_weights = [gradient_of(layer.weight) for layer in self._layers]
        of_biases = [gradient_of(layer.bias) for layer in self._layers]
        for rows in batch_slices(len(x_NI), size):
            x, y, sign = x_NI[rows], y_N[rows], x_NI.new_empty(1)
            passed = backward(weights, biases, x, y, of_biases, sign, 1.0, keep=False)
            for index, d, h in passed:
                torch.mm(d.mT, h, out=of_weights[index])
            self._signs.append(sign)
            self._optimizer.step()


def suits(layers: Sequence[nn.Linear]) -> bool:
    """Whether these steps are for such layers: in single precision on CUDA, if kernels can be
    built."""
    weights = [layer.weight for layer in layers]
    if layers[-1].out_features > CLASSES:
        return False
    simple = all(w.is_contiguous() and w.dtype == torch.float32 for w in weights)
    return simple and weights[0].is_cuda and can_launch()
