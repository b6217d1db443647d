"""A pass over a trial's samples at one batch size: every step's update, layer by layer.

At a step on b samples a layer's weights change by sum_s u_s h_s^T over these samples, with h_s the
layer's input and u_s = -(rate / b) times the gradient of sample s with respect to the layer's
output. The u and h of all samples are the whole pass: any sum of its gradients is a product of
the two. The passes of a trial at all batch sizes start from the same weights and see the same
samples: what these meet at the starting weights, where the first batch of every pass is, and their
inner products with each other are computed once. The first layer's output at a later step is

    z_t = W_0 x_t + b_0 + sum_s (x_s . x_t + 1) u_s        over the samples s of earlier steps

and its weights are never touched. A last layer needs the gradient of a last step, but no step
after it: nothing is propagated down from there unless it is asked for.

Passes of many small steps run in double precision whatever the data are in: in single, one unit in
some millions lies so near zero that rounding decides its side, and its pass then ends elsewhere
(decision 0004). On CUDA these change the hidden layers' weights a block of steps at a time
(`blocked.py`).

Shapes: R trials side by side, M samples of a trial, I and O inputs and outputs of a layer.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Self

import torch
from torch import nn

from batchlab.engine.blocked import Blocked
from batchlab.engine.loop import BLOCK, Loop, block_size, can_compile, divide
from batchlab.engine.mlp import residual
from batchlab.engine.products import add_product, change, product
from batchlab.spec import batch_slices

SMALL = 32  # up to here in double, and by the compiled loop where there is one (docs/engine.md)

STRETCH = 4  # blocks of the compiled loop: what came before them is added to so many at once

ALL = slice(None)  # samples

PARTED = 8  # from here on half of a wide layer at a time: more samples' updates stay in the cache


class Pass(NamedTuple):
    """The updates of a pass, and what they met, by layer from input to output."""

    inputs: tuple[torch.Tensor, ...]  # h (R, M, I): each layer's inputs at its samples' step
    updates: tuple[torch.Tensor, ...]  # u (R, M, O): -(rate / b) times the output's gradient
    changes: tuple[torch.Tensor, ...] = ()  # of all but the first and last weights, where known

    def first(self, trials: int) -> Self:
        """Those of the first so many trials."""
        return type(self)(*(tuple(of_R[:trials] for of_R in of) for of in self))

    def sum(self, layer: int, rows: slice, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The change of a layer's weights by the steps on these samples (R, O, I).

        In the precision of the pass, which the last layer's updates are in, or the one given.
        """
        dtype = dtype or self.updates[-1].dtype
        if rows == ALL and 0 < layer <= len(self.changes):
            return self.changes[layer - 1].to(dtype).contiguous()
        u, h = (of[layer][:, rows].to(dtype) for of in (self.updates, self.inputs))
        return product(u.mT, h)


class Weights(NamedTuple):
    """The starting weights (I, O) and biases (O) of all layers, in one precision."""

    # By input: a hidden unit that is silent is then a row not to be read. The last layer's are kept
    # by output, because rows of ten classes are too short to be fast.
    weights: tuple[torch.Tensor, ...]
    biases: tuple[torch.Tensor, ...]

    @classmethod
    def of(cls, layers: Sequence[nn.Linear], dtype: torch.dtype) -> Self:
        """Of these layers, whose memory they may share."""
        weights = [layer.weight.detach().to(dtype).mT for layer in layers]
        hidden = [weight_IO.contiguous() for weight_IO in weights[:-1]]
        return cls((*hidden, weights[-1]), tuple(m.bias.detach().to(dtype) for m in layers))


class Start(NamedTuple):
    """What all passes of a trial share: its samples at the starting weights."""

    weights: Weights
    exact: Weights  # in double
    first: torch.Tensor  # (R, M, O): the first layer's outputs, in double
    gram: torch.Tensor  # (R, M, M): the samples' inner products, plus one for the bias, in double
    own: Pass  # of each sample by itself, u being d loss / d output; in the data's precision

    @classmethod
    def of(cls, layers: Sequence[nn.Linear], x_RMI: torch.Tensor, y_RM: torch.Tensor) -> Self:
        """Of samples in the order of their passes."""
        weights = Weights.of(layers, x_RMI.dtype)
        exact = Weights.of(layers, torch.float64)
        x = x_RMI.double()
        first = torch.baddbmm(exact.biases[0], x, exact.weights[0].expand(len(x), -1, -1))
        z = first.to(x_RMI.dtype)
        updates = tuple(z.new_empty(*z.shape[:2], len(bias)) for bias in weights.biases)
        inputs = tuple(torch.empty_like(u) for u in updates[:-1])
        stacks, biases = ([of.expand(len(z), *of.shape) for of in both[1:]] for both in weights)
        _meet(z, y_RM, 1.0, stacks, biases, inputs, updates, down=True)
        gram = torch.bmm(x, x.mT).add_(1.0)
        return cls(weights, exact, first, gram, Pass((x_RMI, *inputs), updates))

    def ordered(self, places_M: torch.Tensor) -> Self:
        """Of the same samples in another order."""
        rows_RMM = self.gram[:, places_M]
        inputs, updates = (
            tuple(of[:, places_M] for of in both) for both in (self.own.inputs, self.own.updates)
        )
        return self._replace(
            first=self.first[:, places_M],
            gram=rows_RMM.gather(2, places_M.expand_as(rows_RMM)),  # a third of indexing at once
            own=Pass(inputs, updates),
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
        blocked: bool | None = None,
        start: Start | None = None,
    ) -> None:
        """`deep` asks for the updates of every layer at every step, the last one included.

        `start` is that of `x_RMI`, where it is known. `blocked` passes in double change their
        weights a block of steps at a time (`blocked.py`); left out, those on CUDA are.
        """
        self._y_RM, self._deep = y_RM, deep
        blocked = x_RMI.is_cuda if blocked is None else blocked
        replicas, samples = y_RM.shape
        start = start or Start.of(layers, x_RMI, y_RM)
        self._weights, self._biases = start.weights
        self._loops: dict[int, Loop] = {}  # by their parts
        self._exact: Walker | None = None
        self._blocked: Blocked | None = None
        dtype = self._biases[0].dtype
        self._own = start.own
        self._first_RMO, self._gram_RMM = start.first.to(dtype), start.gram.to(dtype)
        if dtype != torch.float64:
            exact = start._replace(weights=start.exact)
            self._exact = Walker(layers, x_RMI, y_RM, deep=deep, blocked=blocked, start=exact)
        # Every pass is written over the one before it: fresh memory costs as much as a product.
        rooms = [x_RMI.new_empty((replicas, samples, len(b)), dtype=dtype) for b in self._biases]
        self._updates = tuple(rooms)
        self._inputs = (x_RMI, *(torch.empty_like(u) for u in rooms[:-1]))
        if blocked and dtype == torch.float64 and len(layers) > 1:
            self._blocked = Blocked(
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

        It stays as it is.
        """
        return self._own

    def walk(self, size: int, rate: float) -> Pass:
        """The pass at batch size `size`, stepping at `rate`; the last batch may be short.

        The next pass overwrites it, and without `deep` only the last layer's is there. A small
        size's is in double.
        """
        if size <= SMALL and self._exact is not None:
            return self._exact.walk(size, rate)
        if size <= SMALL and self._blocked is not None:
            self._blocked.walk(size, rate, deep=self._deep)
            return Pass(self._inputs, self._updates)
        if (
            size <= SMALL
            and len(self._y_RM) == 1
            and can_compile(len(self._weights), self._y_RM.device.type)
        ):
            return self._compiled(size, rate)
        samples = self._y_RM.shape[1]
        weights, biases = self._copies()
        for rows in batch_slices(samples, size):
            ends = rows.stop == samples
            scale = -rate / (rows.stop - rows.start)
            inputs = [h[:, rows] for h in self._inputs[1:]]
            updates = [u[:, rows] for u in self._updates]
            # A small size may be walked in double, and its start is not known in that.
            if rows.start == 0 and size > SMALL:
                self._begin(scale, inputs, updates)
            else:
                down, y = self._deep or not ends, self._y_RM[:, rows]
                _meet(self._first(rows), y, scale, weights, biases, inputs, updates, down=down)
            if not ends:
                for weight, bias, h, u in zip(weights, biases, inputs, updates[1:], strict=True):
                    change(weight, h.mT, u, 1.0)
                    bias.add_(u.sum(1))
        return Pass(self._inputs, self._updates)

    def _begin(
        self, scale: float, inputs: Sequence[torch.Tensor], updates: Sequence[torch.Tensor]
    ) -> None:
        """The first batch by what is known of its samples at the starting weights."""
        for h, own in zip(inputs, self._own.inputs[1:], strict=True):
            h.copy_(own[:, : h.shape[1]])
        for u, own in zip(updates, self._own.updates, strict=True):
            torch.mul(own[:, : u.shape[1]], scale, out=u)

    def _first(self, rows: slice) -> torch.Tensor:
        """The first layer's output at these samples, all samples before them passed."""
        return self._moved(self._first_RMO[:, rows].clone(), rows, 0)

    def _moved(self, z_RBO: torch.Tensor, rows: slice, since: int) -> torch.Tensor:
        """`z_RBO`, with the updates by the samples from `since` on up to these."""
        if rows.start == since:
            return z_RBO
        before = slice(since, rows.start)
        return add_product(z_RBO, self._gram_RMM[:, rows, before], self._updates[0][:, before])

    def _copies(self) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Each replica's own weights (R, I, O) and biases (R, O) of all layers but the first."""
        replicas = len(self._y_RM)

        def copies(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.unsqueeze(0).repeat(replicas, *[1] * tensor.ndim)

        hidden = [copies(weight) for weight in self._weights[1:-1]]
        top = [copies(weight.mT).mT for weight in self._weights[1:][-1:]]  # still by output
        return [*hidden, *top], [copies(bias) for bias in self._biases[1:]]

    def _compiled(self, size: int, rate: float) -> Pass:
        """The pass by the compiled loop."""
        widths, samples = [len(bias) for bias in self._biases], self._y_RM.shape[1]
        parts = divide(widths) if size >= PARTED else 1
        if parts not in self._loops:
            self._loops[parts] = Loop(widths, max(SMALL, BLOCK), self._gram_RMM.dtype, parts=parts)
        loop = self._loops[parts]
        *hidden, top = (loop.pack(w) for w in (*self._weights[1:-1], self._weights[-1].mT))
        *biases, top_bias = (bias.clone() for bias in self._biases[1:])
        for rows, z in self._blocks(block_size(size)):
            loop.take(
                0,
                z[0],
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
        if not self._deep:
            return Pass(self._inputs, self._updates)
        changes = []
        for flat, weight_IO in zip(hidden, self._weights[1:-1], strict=True):
            change_IO = torch.empty_like(weight_IO)
            loop.unpack(flat, change_IO)
            changes.append(change_IO.sub_(weight_IO).mT.unsqueeze(0))
        return Pass(self._inputs, self._updates, tuple(changes))

    def _blocks(self, size: int) -> Iterator[tuple[slice, torch.Tensor]]:
        """Blocks of so many samples, and the first layer's output at each when it comes."""
        for stretch in batch_slices(self._y_RM.shape[1], STRETCH * size):
            z = self._first(stretch)
            for block in batch_slices(stretch.stop - stretch.start, size):
                rows = slice(stretch.start + block.start, stretch.start + block.stop)
                yield rows, self._moved(z[:, block], rows, stretch.start)


def _meet(
    z_RBO: torch.Tensor,
    y_RB: torch.Tensor,
    scale: float,
    weights_RIO: Sequence[torch.Tensor],
    biases_RO: Sequence[torch.Tensor],
    inputs: Sequence[torch.Tensor],
    updates: Sequence[torch.Tensor],
    *,
    down: bool,
) -> None:
    """Write what one batch meets, from the first layer's output: hidden `inputs` and all `updates`.

    `down` propagates below the last layer. Weights and biases are those of all layers but the
    first.
    """
    for h, weight, bias in zip(inputs, weights_RIO, biases_RO, strict=True):
        torch.clamp_min(z_RBO, 0.0, out=h)
        z_RBO = product(h, weight).add_(bias.unsqueeze(1))
    updates[-1].copy_(residual(z_RBO, y_RB).mul_(scale))
    for k in reversed(range(len(inputs) if down else 0)):
        back = product(updates[k + 1], weights_RIO[k].mT)
        updates[k].copy_(torch.ops.aten.threshold_backward(back, inputs[k], 0.0))
