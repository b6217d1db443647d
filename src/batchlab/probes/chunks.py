"""The gradient norms of a batch's chunks, from hooks on parameters: for any model and loss.

A chunk is what one backward pass goes through: a micro-batch of gradient accumulation, one of two
halves. The hook sees its gradient before it is added to `.grad`, so nothing is copied and nothing
is kept but norms. Precision is that of two or more chunks, far below that of per-example norms at
the same batch: the variance of tau falls with their number.

Shapes: K chunks, P parameters.
"""

from collections.abc import Iterable, Mapping
from functools import partial
from math import hypot, isfinite
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from batchlab.probes.hooks import Gatherer, trained
from batchlab.probes.parts import Parts, parts
from batchlab.probes.squares import entries
from batchlab.spec import UserError

Reduction = Literal["mean", "sum"]
TOLERANCE = 0.001  # of the norm: one is a copy of the other


class ChunkNorms(Gatherer):
    """Hooks on a model's parameters; `close` after every backward pass, `take` before the step.

    ```
    with ChunkNorms(model) as chunks:
        statistics = NoiseStatistics(chunks.names)
        for halves in batches:
            for x, y in halves:
                (loss(model(x), y) / len(halves)).backward()
                chunks.close(len(x))
            statistics.update(chunks.take(loss_scale=1 / len(halves)))
            optimizer.step(), optimizer.zero_grad()
    ```

    `roots`, by parameter name, turns norms into those of roots * gradient: the metric of a
    preconditioner (`probes/preconditioner.py`), and has every parameter. It may be set anew between
    steps. Where data parallel training averages gradients, the hook sees this rank's alone:
    `probes/ranks.py`.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        own = trained(model)
        self.names = tuple(own)
        self.roots: Mapping[str, Tensor] | None = None
        self._parameters = list(own.values())
        self._open: dict[int, Tensor] = {}
        self._unclosed = False  # a parameter was reached twice since the last close
        self._norms: list[Tensor] = []  # (P) of each chunk
        self._sizes: list[int] = []
        self.active = True

    @property
    def sizes(self) -> tuple[int, ...]:
        """Examples of each closed chunk since the last `take`."""
        return tuple(self._sizes)

    @property
    def reached(self) -> bool:
        """Whether a backward pass has come since the last `close`."""
        return bool(self._open)

    def discard(self) -> None:
        """Forget the chunks since the last `take`."""
        self._open.clear()
        self._unclosed = False
        self._norms.clear()
        self._sizes.clear()

    def close(self, examples: int) -> None:
        """End a chunk of that many examples; a parameter it did not reach has no gradient in it.

        Raises `UserError` where no or more than one backward pass was seen.
        """
        if not self._open:
            raise UserError("no gradient was seen: close a chunk after its backward pass")
        if self._unclosed:
            self.discard()
            raise UserError("two backward passes in one chunk: close(examples) after each")
        none = torch.zeros_like(next(iter(self._open.values())))
        self._norms.append(
            torch.stack([self._open.get(k, none) for k in range(len(self._parameters))])
        )
        self._sizes.append(examples)
        self._open.clear()

    def compare(self) -> bool:
        """Whether a step's first chunk is finite, before it is closed; waits for the device.

        Raises `UserError` where `.grad` is not its gradient: it was not zero before the step, or
        did not stay (an adversarial example's own backward pass). The whole would not be the sum.
        """
        with torch.no_grad():
            there = [(k, p.grad) for k, p in enumerate(self._parameters) if p.grad is not None]
            now = hypot(*(float(self._norm(k, g)) for k, g in there))
        seen = hypot(*(float(norm) for norm in self._open.values()))
        if abs(now - seen) > TOLERANCE * seen:
            raise UserError(
                f"after a step's first backward pass, whose gradient has the norm {seen:.3g}, "
                f".grad has {now:.3g}: it must be zero before a step, and stay until the step ends"
            )
        return isfinite(seen)

    def take(self, reduction: Reduction = "mean", loss_scale: float | Tensor = 1.0) -> Parts:
        """The norms of a step's chunks, and of the whole from `.grad`.

        `reduction` is that of each chunk's loss over its examples, and `loss_scale` by what else it
        was multiplied: 1/K where gradients accumulate to their mean, and the factor of a loss
        scaler (a tensor) where `.grad` still has it. With "mean", chunks weigh equally in the whole
        however many examples they have; with "sum", by their examples. Raises `UserError` where
        there are fewer than two chunks or a backward pass was not closed, and forgets the step.
        """
        try:
            with torch.no_grad():
                return self._take(reduction, loss_scale)
        finally:
            self.discard()

    def _take(self, reduction: Reduction, loss_scale: float | Tensor) -> Parts:
        if self._open:
            raise UserError("a backward pass was not closed: close(examples) after each")
        if len(self._sizes) < 2:
            raise UserError(f"a step in two chunks or more is needed, not in {len(self._sizes)}")
        sizes = self._sizes
        weights = [1.0 if reduction == "mean" else float(b) for b in sizes]
        own_KP = torch.stack(torch._foreach_div(self._norms, weights))
        whole_P = torch.stack(
            [
                own_KP.new_zeros(()) if p.grad is None else self._norm(k, p.grad).to(own_KP.dtype)
                for k, p in enumerate(self._parameters)
            ]
        )
        whole_P = whole_P / sum(weights)
        return parts(own_KP / loss_scale, whole_P / loss_scale, sizes, weights)

    def _attach(self) -> Iterable[RemovableHandle]:
        return (p.register_hook(partial(self._backward, k)) for k, p in enumerate(self._parameters))

    def _backward(self, k: int, gradient: Tensor) -> None:
        # An error here would end the backward pass half done.
        self._unclosed = self._unclosed or k in self._open
        self._open[k] = self._norm(k, gradient.detach())

    def _norm(self, k: int, gradient: Tensor) -> Tensor:
        root = None if self.roots is None else self.roots[self.names[k]]
        norm: Tensor = torch.linalg.vector_norm(entries(gradient, root))
        return norm
