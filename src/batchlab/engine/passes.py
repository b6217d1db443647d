"""A pass over a trial's samples at one batch size: every step's update, layer by layer.

At a step on b samples a layer's weights change by sum_s u_s h_s^T over these samples, with h_s the
layer's input and u_s = -(rate / b) times the gradient of sample s with respect to the layer's
output. The u and h of all samples are the whole pass: any sum of its gradients is a product of
the two. The passes of a trial at all batch sizes start from the same weights and see the same
samples, so that the first layer's products with the starting weights, and the inner products of
the samples with each other, are computed once: the first layer's output at a later step is

    z_t = W_0 x_t + b_0 + sum_s (x_s . x_t + 1) u_s        over the samples s of earlier steps

and its weights are never touched. A last layer needs the gradient of a last step, but no step
after it: nothing is propagated down from there unless it is asked for.

Passes of many small steps run in double precision whatever the data are in: in single, one unit in
some millions lies so near zero that rounding decides its side, and its pass then ends elsewhere
(decision 0004). On CUDA these leave the hidden layers' weights alone as well (`history.py`).

Shapes: R trials side by side, M samples of a trial, I and O inputs and outputs of a layer.
"""

import copy
from collections.abc import Sequence
from typing import NamedTuple, Self

import torch
from torch import nn

from batchlab.engine.history import History
from batchlab.engine.loop import BLOCK, Loop, block_size, can_compile, divide
from batchlab.engine.mlp import residual
from batchlab.engine.products import add_product, product
from batchlab.spec import batch_slices

SMALL = 32  # up to here in double, and by the compiled loop where there is one (docs/engine.md)

PARTED = 8  # from here on half of a wide layer at a time: more samples' updates stay in the cache


class Pass(NamedTuple):
    """The updates of a pass, and what they met, by layer from input to output."""

    inputs: tuple[torch.Tensor, ...]  # h (R, M, I): each layer's inputs at its samples' step
    updates: tuple[torch.Tensor, ...]  # u (R, M, O): -(rate / b) times the output's gradient

    def sum(self, layer: int, rows: slice, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The change of a layer's weights by the steps on these samples (R, O, I).

        In the precision of the pass, which the last layer's updates are in, or the one given.
        """
        dtype = dtype or self.updates[-1].dtype
        u, h = (of[layer][:, rows].to(dtype) for of in (self.updates, self.inputs))
        return product(u.mT, h)


class Products(NamedTuple):
    """What all passes of a trial share, in double."""

    first: torch.Tensor  # (R, M, O): the first layer's outputs at the starting weights
    gram: torch.Tensor  # (R, M, M): the samples' inner products, plus one for the bias

    @classmethod
    def of(cls, layer: nn.Linear, x_RMI: torch.Tensor) -> Self:
        """By the first layer."""
        x, weight = x_RMI.double(), layer.weight.detach().mT.double()
        first = torch.baddbmm(layer.bias.detach().double(), x, weight.expand(len(x), -1, -1))
        return cls(first, torch.bmm(x, x.mT).add_(1.0))

    def ordered(self, places_M: torch.Tensor) -> Self:
        """Of the same samples in another order."""
        return type(self)(
            self.first[:, places_M], self.gram[:, places_M[:, None], places_M.unsqueeze(0)]
        )


class Walker:
    """R trials, passed over from the same starting weights at one batch size after another."""

    def __init__(
        self,
        layers: Sequence[nn.Linear],
        x_RMI: torch.Tensor,
        y_RM: torch.Tensor,
        *,
        deep: bool,
        history: torch.dtype | None = None,
        products: Products | None = None,
    ) -> None:
        """`deep` asks for the updates of every layer at every step, the last one included.

        `products` are those of `x_RMI`, where they are known. With `history` passes in double
        go without weights of the trials' own, and keep what they are computed from in that
        precision (`history.py`); left out, so do those on CUDA, in double: in single precision one
        pass in some sixty has a unit that changes its side.
        """
        self._y_RM, self._deep = y_RM, deep
        if history is None and x_RMI.is_cuda:
            history = torch.float64
        replicas, samples = y_RM.shape
        # Weights by input, (I, O): a hidden unit that is silent is then a row not to be read. The
        # last layer's are kept by output, because rows of ten classes are too short to be fast.
        hidden = [layer.weight.detach().mT.contiguous() for layer in layers[:-1]]
        self._weights = [*hidden, layers[-1].weight.detach().mT]
        self._biases = [layer.bias.detach() for layer in layers]
        self._loops: dict[int, Loop] = {}  # by their parts
        self._exact: Walker | None = None
        self._history: History | None = None
        dtype = self._biases[0].dtype
        products = products or Products.of(layers[0], x_RMI)
        self._first_RMO, self._gram_RMM = products.first.to(dtype), products.gram.to(dtype)
        if dtype != torch.float64:
            doubles = [copy.deepcopy(layer).double() for layer in layers]
            x = x_RMI if history else x_RMI.double()
            self._exact = Walker(doubles, x, y_RM, deep=deep, history=history, products=products)
        # Every pass is written over the one before it: fresh memory costs as much as a product.
        # A history may be in less than the precision of the pass: fewer bytes to read at every
        # step. What the last layer's gradient is made of is none.
        by_history = history is not None and dtype == torch.float64 and len(layers) > 1
        last = len(layers) - 1
        kept = [history if history is not None and by_history else dtype] * last + [dtype]
        rooms = [
            x_RMI.new_zeros((replicas, samples, weight.shape[1]), dtype=kept[k])
            for k, weight in enumerate(self._weights)
        ]
        self._updates = tuple(rooms)
        self._inputs = (
            x_RMI,
            *(torch.zeros_like(u, dtype=kept[k + 1]) for k, u in enumerate(rooms[:-1])),
        )
        if by_history:
            self._history = History(
                self._weights,
                self._biases,
                self._first_RMO,
                self._gram_RMM,
                y_RM,
                self._inputs,
                self._updates,
            )

    def frozen(self) -> Pass:
        """All samples at the starting weights, u being d loss / d output of each sample.

        The next pass overwrites it, and without `deep` only the last layer's is there.
        """
        weights, biases = self._start()
        z = self._first_RMO.clone()
        self._batch(z, slice(None), 1.0, weights, biases, step=False, down=self._deep)
        return Pass(self._inputs, self._updates)

    def walk(self, size: int, rate: float) -> Pass:
        """The pass at batch size `size`, stepping at `rate`; the last batch may be short.

        The next pass overwrites it, and without `deep` only the last layer's is there. A small
        size's is in double.
        """
        if size <= SMALL and self._exact is not None:
            return self._exact.walk(size, rate)
        if size <= SMALL and self._history is not None:
            self._history.walk(size, rate, deep=self._deep)
            return Pass(self._inputs, self._updates)
        if (
            size <= SMALL
            and len(self._y_RM) == 1
            and can_compile(len(self._weights), self._y_RM.device.type)
        ):
            return self._compiled(size, rate)
        samples = self._y_RM.shape[1]
        weights, biases = self._start()
        for rows in batch_slices(samples, size):
            ends = rows.stop == samples
            scale = -rate / (rows.stop - rows.start)
            down = self._deep or not ends
            z = self._first(rows)
            self._batch(z, rows, scale, weights, biases, step=not ends, down=down)
        return Pass(self._inputs, self._updates)

    def _first(self, rows: slice) -> torch.Tensor:
        """The first layer's output at these samples, all samples before them passed."""
        z = self._first_RMO[:, rows].clone()
        if rows.start:
            before = slice(rows.start)
            z = add_product(z, self._gram_RMM[:, rows, before], self._updates[0][:, before])
        return z

    def _start(self) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Each replica's own weights (R, I, O) and biases (R, O) of all layers but the first."""
        replicas = len(self._y_RM)

        def copies(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.unsqueeze(0).repeat(replicas, *[1] * tensor.ndim)

        hidden = [copies(weight) for weight in self._weights[1:-1]]
        top = [copies(weight.mT).mT for weight in self._weights[1:][-1:]]  # still by output
        return [*hidden, *top], [copies(bias) for bias in self._biases[1:]]

    def _batch(
        self,
        z_RBO: torch.Tensor,
        rows: slice,
        scale: float,
        weights: list[torch.Tensor],
        biases: list[torch.Tensor],
        *,
        step: bool,
        down: bool,
    ) -> None:
        """One batch by matrix products, from the first layer's output.

        `down` propagates below the last layer, `step` changes the weights, but for the first's.
        """
        inputs = [h[:, rows] for h in self._inputs[1:]]
        updates = [u[:, rows] for u in self._updates]
        for h, weight, bias in zip(inputs, weights, biases, strict=True):
            torch.clamp_min(z_RBO, 0.0, out=h)
            z_RBO = product(h, weight).add_(bias.unsqueeze(1))
        updates[-1].copy_(residual(z_RBO, self._y_RM[:, rows]).mul_(scale))
        for k in range(len(weights) - 1, -1, -1):
            h, above, below = inputs[k], updates[k + 1], updates[k]
            if down:
                back = product(above, weights[k].mT)
                below.copy_(torch.ops.aten.threshold_backward(back, h, 0.0))
            if step:
                weights[k] = add_product(weights[k], h.mT, above)
                biases[k].add_(above.sum(1))

    def _compiled(self, size: int, rate: float) -> Pass:
        """The pass by the compiled loop."""
        widths, samples = [len(bias) for bias in self._biases], self._y_RM.shape[1]
        parts = divide(widths) if size >= PARTED else 1
        if parts not in self._loops:
            self._loops[parts] = Loop(widths, max(SMALL, BLOCK), self._gram_RMM.dtype, parts=parts)
        loop = self._loops[parts]
        *hidden, top = (loop.pack(w) for w in (*self._weights[1:-1], self._weights[-1].mT))
        *biases, top_bias = (bias.clone() for bias in self._biases[1:])
        for rows in batch_slices(samples, block_size(size)):
            loop.take(
                0,
                self._first(rows)[0],
                self._gram_RMM[0, rows, rows].contiguous(),
                self._y_RM[0, rows],
                hidden,
                biases,
                top,
                top_bias,
                size,
                rate,
                [h[0, rows] for h in self._inputs[1:]],
                [u[0, rows] for u in self._updates],
                ends=rows.stop == samples and not self._deep,
            )
        return Pass(self._inputs, self._updates)
