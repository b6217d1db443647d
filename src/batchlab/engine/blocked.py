"""Small steps of many trials side by side, whose hidden weights change a block of steps at a time.

Between, what the block's own steps have added to a product with the weights is computed from the
samples of these steps, a linear attention over so many at the most:

    z_s    = W h_s + b + sum_t (h_t . h_s + 1) u_t
    back_s = W^T u_s + sum_t h_t (u_t . u_s)

A step then reads the weights of every trial and does little else that takes time. It need read them
but once: a row of them is what the step's gradient comes down by to one unit, what that unit sends
up at the next step depends on nothing else that the row is needed for, and so `advance` goes down a
step and up the next by one reading (`advance_kernel.py`). Only the last layer's weights, of a few
classes, change at every step.

Shapes: R trials side by side, M samples of a trial, B of a batch, N of the next one, I and O inputs
and outputs of a layer.
"""

from collections.abc import Sequence

import torch

from batchlab.engine.launching import can_launch
from batchlab.engine.loop import block_size
from batchlab.engine.mlp import residual
from batchlab.spec import batch_slices

ONCE = 2  # samples of a step up to which the kernel is faster than two products
# Samples of a pass that come before its trials have weights of their own, where products are taken:
# to read what so many have added to the weights that all share takes half of the time, on average,
# that it takes to read weights.
SHARED = 448


class Blocked:
    """Passes of R trials from the same starting weights, in the precision of these."""

    def __init__(
        self,
        weights_IO: Sequence[torch.Tensor],
        biases_O: Sequence[torch.Tensor],
        first_RMO: torch.Tensor,
        gram_RMM: torch.Tensor,
        y_RM: torch.Tensor,
        inputs_RMI: Sequence[torch.Tensor],
        updates_RMO: Sequence[torch.Tensor],
    ) -> None:
        """`first_RMO`: the first layer's outputs by the starting weights; `gram_RMM`: the inner
        products of its inputs plus one. `inputs_RMI` and `updates_RMO` of all layers are written
        by a walk.
        """
        self._weights, self._biases = weights_IO, biases_O
        self._first_RMO, self._gram_RMM, self._y_RM = first_RMO, gram_RMM, y_RM
        self._inputs, self._updates = inputs_RMI, updates_RMO

    def walk(self, size: int, rate: float, *, deep: bool) -> None:
        """The pass at batch size `size`; without `deep` nothing is below the last step's top."""
        replicas, samples = self._y_RM.shape
        # By layer: the weights that all share, (I, O), or those of each trial, (R, I, O). The first
        # layer's are never touched.
        own = [*self._weights[:-1], self._weights[-1].repeat(replicas, 1, 1)]
        if size <= ONCE:
            own[1:-1] = [w.repeat(replicas, 1, 1) for w in own[1:-1]]
        biases = [b.repeat(replicas, 1, 1) for b in self._biases]
        base = 0  # the samples before it are in the weights
        h, z = self._first_RMO[:, :size].clamp_min(0.0), None
        for block in batch_slices(samples, block_size(size)):
            # What came before the block, for every batch that comes next in it.
            ahead, before = slice(block.start + size, block.stop + size), slice(block.start)
            known = self._first_RMO[:, ahead].clone()
            if block.start:
                known.baddbmm_(self._gram_RMM[:, ahead, before], self._updates[0][:, before])
            for part in batch_slices(block.stop - block.start, size):
                rows = slice(block.start + part.start, block.start + part.stop)
                within = slice(base, rows.start)
                ends = rows.stop == samples
                scale = -rate / (rows.stop - rows.start)
                activations = self._up(h, z, own, biases, rows, within)
                back = self._top(activations[-1], own[-1], biases[-1], rows, scale, step=not ends)
                if ends and not deep:
                    return
                u, back = self._down(back, activations, own, rows, within)
                weight = own[1] if len(own) > 2 else None
                following = slice(rows.stop, rows.stop + size)
                z_first = known[:, part].contiguous()
                factors = self._gram_RMM[:, following]
                if part.start:
                    since = slice(block.start, rows.start)
                    z_first.baddbmm_(factors[:, :, since], self._updates[0][:, since])
                factors = factors[:, :, rows]
                below, h, z = advance(weight, u, activations[0], back, z_first, factors)
                self._updates[0][:, rows] = below
                if z is not None and not ends:
                    self._add(z.add_(biases[1]), 1, h, slice(base, rows.stop))
            if block.stop < samples and (size <= ONCE or block.stop >= SHARED):
                self._change(own, biases, slice(base, block.stop))
                base = block.stop

    def _up(
        self,
        h_RBI: torch.Tensor,
        z_RBO: torch.Tensor | None,
        own: Sequence[torch.Tensor],
        biases: Sequence[torch.Tensor],
        rows: slice,
        within: slice,
    ) -> list[torch.Tensor]:
        """A batch's inputs of every layer but the first, from the second layer's.

        `z_RBO` is the second layer's output where it is known.
        """
        activations = [h_RBI]
        self._inputs[1][:, rows] = h_RBI
        for k in range(1, len(own) - 1):
            if k > 1 or z_RBO is None:
                z_RBO = _times(activations[-1], own[k]).add_(biases[k])
                self._add(z_RBO, k, activations[-1], within)
            activations.append(z_RBO.clamp_min_(0.0))
            self._inputs[k + 1][:, rows] = z_RBO
        return activations

    def _top(
        self,
        h_RBI: torch.Tensor,
        weight_RIO: torch.Tensor,
        bias_RO: torch.Tensor,
        rows: slice,
        scale: float,
        *,
        step: bool,
    ) -> torch.Tensor:
        """What comes down from the last layer (R, B, I); `step` changes its weights."""
        z_RBO = torch.baddbmm(bias_RO, h_RBI, weight_RIO)
        u_RBO = residual(z_RBO, self._y_RM[:, rows]).mul_(scale)
        self._updates[-1][:, rows] = u_RBO
        back_RBI = torch.bmm(u_RBO, weight_RIO.mT)
        if step:
            weight_RIO.baddbmm_(h_RBI.mT, u_RBO)
            bias_RO.add_(u_RBO.sum(1, keepdim=True))
        return back_RBI

    def _down(
        self,
        back: torch.Tensor,
        activations: Sequence[torch.Tensor],
        own: Sequence[torch.Tensor],
        rows: slice,
        within: slice,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """From the last layer down to the second.

        Its updates (R, B, O), and what of that which comes down from them is not by its weights at
        the block's beginning (R, B, I).
        """
        u = back
        for k in range(len(own) - 2, 0, -1):
            u = torch.ops.aten.threshold_backward(back, activations[k], 0.0)
            self._updates[k][:, rows] = u
            back = _times(u, own[k].mT) if k > 1 else torch.zeros_like(activations[0])
            if within.stop > within.start:
                updates, inputs = self._updates[k][:, within], self._inputs[k][:, within]
                back.baddbmm_(torch.bmm(u, updates.mT), inputs)
        return u, back

    def _add(self, z_RBO: torch.Tensor, k: int, h_RBI: torch.Tensor, within: slice) -> None:
        """Add to a layer's output what the steps on these samples have added to its weights."""
        if within.stop > within.start:
            inputs, updates = self._inputs[k][:, within], self._updates[k][:, within]
            z_RBO.baddbmm_(torch.bmm(h_RBI, inputs.mT).add_(1.0), updates)  # the one is the bias

    def _change(self, own: list[torch.Tensor], biases: Sequence[torch.Tensor], rows: slice) -> None:
        """Bring the steps on these samples into the weights between the first and the last."""
        for k in range(1, len(own) - 1):
            u_RSO = self._updates[k][:, rows]
            if own[k].ndim == 2:
                own[k] = own[k].repeat(len(u_RSO), 1, 1)
            own[k].baddbmm_(self._inputs[k][:, rows].mT, u_RSO)
            biases[k].add_(u_RSO.sum(1, keepdim=True))


def _times(h_RBI: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """h weight of each replica, by its own weights (R, I, O) or those of all (I, O)."""
    if weight.ndim == 3:
        return torch.bmm(h_RBI, weight)
    product: torch.Tensor = torch.mm(h_RBI.flatten(0, 1), weight).unflatten(0, h_RBI.shape[:2])
    return product


def advance(
    weight: torch.Tensor | None,
    u_RBO: torch.Tensor,
    h_RBI: torch.Tensor,
    back_RBI: torch.Tensor,
    z_RNI: torch.Tensor,
    gram_RNB: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Down through a layer at one step, and up through it at the next.

        below = back + u weight^T, where h is above zero; otherwise 0
        next = what of z + gram below is above zero
        output = next weight

    The weight is each replica's (R, I, O) or that of all (I, O). Returns all three (R, B, I),
    (R, N, I), (R, N, O); without a weight below is `back` where h is above zero, and there is no
    output. All but `gram_RNB` are contiguous; `back_RBI` and `z_RNI` may be overwritten. By the
    kernel of `advance_kernel.py` where that is faster and can be built.
    """
    once = u_RBO.is_cuda and u_RBO.shape[1] <= ONCE and z_RNI.shape[1]
    if weight is not None and weight.ndim == 3 and once and can_launch():
        from batchlab.engine.advance_kernel import fits, launch

        if fits(weight):
            return launch(weight, u_RBO, h_RBI, back_RBI, z_RNI, gram_RNB)
    if weight is not None and weight.ndim == 3:
        back_RBI.baddbmm_(u_RBO, weight.mT)
    elif weight is not None:
        back_RBI.add_(_times(u_RBO, weight.mT))
    below_RBI = torch.ops.aten.threshold_backward(back_RBI, h_RBI, 0.0)
    next_RNI = z_RNI.baddbmm_(gram_RNB, below_RBI).clamp_min_(0.0)
    return below_RBI, next_RNI, None if weight is None else _times(next_RNI, weight)
