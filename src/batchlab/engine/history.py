"""Small steps of many trials side by side, whose weights are never touched.

Trials that pass over samples of their own from the same starting weights differ by their updates
alone. A layer's product with its present weights is that with the starting ones, one product for
all trials together, and what the trial's own updates so far add to it (`attend.py`):

    z_s    = W_0 h_s + b_0 + sum_t (h_t . h_s + 1) u_t        over the samples t of earlier steps
    back_s = W_0^T u_s + sum_t h_t (u_t . u_s)

A step of one sample reads the h and u of 512 samples on average, in single precision 8 MB of a
layer of 1,024 by 1,024; weights of its own would be 34 MB in double, read twice and written. Only
the last layer's, of a few classes, are the trial's own.

Shapes: R trials side by side, M samples of a trial, B of a batch, I and O inputs and outputs of a
layer.
"""

from collections.abc import Sequence

import torch

from batchlab.engine.attend import attend, mix
from batchlab.engine.loop import block_size
from batchlab.engine.mlp import residual
from batchlab.spec import batch_slices


class History:
    """Passes of R trials in the precision of their weights, whatever theirs is kept in."""

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
        by a walk and are its history.
        """
        self._weights, self._biases = weights_IO, biases_O
        self._first_RMO, self._gram_RMM, self._y_RM = first_RMO, gram_RMM, y_RM
        self._inputs, self._updates = inputs_RMI, updates_RMO

    def walk(self, size: int, rate: float, *, deep: bool) -> None:
        """The pass at batch size `size`; without `deep` nothing is below the last step's top."""
        replicas, samples = self._y_RM.shape
        top_RIO = self._weights[-1].repeat(replicas, 1, 1)
        bias_RO = self._biases[-1].repeat(replicas, 1)
        u_first = self._updates[0]
        for block in batch_slices(samples, block_size(size)):
            # The first layer's inputs are known: what came before a block, for all of it at once.
            z_block = self._first_RMO[:, block].clone()
            if block.start:
                before = slice(block.start)
                mix(z_block, self._gram_RMM[:, block, before], u_first[:, before])
            for part in batch_slices(block.stop - block.start, size):
                rows = slice(block.start + part.start, block.start + part.stop)
                z = z_block[:, part].contiguous()
                if part.start:
                    within = slice(block.start, rows.start)
                    mix(z, self._gram_RMM[:, rows, within], u_first[:, within])
                ends = rows.stop == samples
                scale = -rate / (rows.stop - rows.start)
                self._step(z, rows, scale, top_RIO, bias_RO, step=not ends, down=deep or not ends)

    def _step(
        self,
        z_RBO: torch.Tensor,
        rows: slice,
        scale: float,
        top_RIO: torch.Tensor,
        bias_RO: torch.Tensor,
        *,
        step: bool,
        down: bool,
    ) -> None:
        """One batch, from the first layer's output; `step` changes the last layer's weights."""
        hidden = len(self._weights) - 1
        before = slice(rows.start)
        activations: list[torch.Tensor] = []
        for k in range(hidden):
            h = z_RBO.clamp_min_(0.0)
            activations.append(h)
            self._inputs[k + 1][:, rows] = h
            if k < hidden - 1:
                weight_IO, bias_O = self._weights[k + 1], self._biases[k + 1]
                z_RBO = torch.addmm(bias_O, h.flatten(0, 1), weight_IO).unflatten(0, h.shape[:2])
                if rows.start:
                    keys, values = self._inputs[k + 1], self._updates[k + 1]
                    attend(z_RBO, keys[:, before], values[:, before], h, 1.0)
        z_RBO = torch.baddbmm(bias_RO.unsqueeze(1), activations[-1], top_RIO)
        above = residual(z_RBO, self._y_RM[:, rows]).mul_(scale)
        self._updates[-1][:, rows] = above
        if down:
            back = torch.bmm(above, top_RIO.mT)
            for k in range(hidden - 1, -1, -1):
                u = torch.ops.aten.threshold_backward(back, activations[k], 0.0)
                self._updates[k][:, rows] = u
                if k:
                    product = u.flatten(0, 1) @ self._weights[k].mT
                    back = product.unflatten(0, u.shape[:2])
                    if rows.start:
                        keys, values = self._updates[k], self._inputs[k]
                        attend(back, keys[:, before], values[:, before], u, 0.0)
        if step:
            top_RIO.baddbmm_(activations[-1].mT, above)
            bias_RO.add_(above.sum(1))
