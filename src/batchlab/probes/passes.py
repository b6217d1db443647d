"""What backward passes have shown of a layer: its examples' gradient norms, pass by pass.

Shapes: B examples.
"""

from collections.abc import Sequence, Sized

import torch
from torch import Tensor, nn

from batchlab.probes.layers import LAYERS
from batchlab.probes.norms import of_rows

_pass_number = torch._C._current_graph_task_id


class Layer:
    """One module: which parameters it has, and what its backward passes have shown."""

    __slots__ = ("module", "name", "of", "parameters", "passes", "plain", "simple", "wanted")

    def __init__(self, name: str, module: nn.Module) -> None:
        self.name, self.module, self.of = name, module, LAYERS[type(module)]
        self.simple = isinstance(module, nn.Linear)  # of one position: an example is a row
        there = dict(module.named_parameters(recurse=False))
        self.wanted = [p.requires_grad for p in there.values()]
        self.plain = self.wanted == [True, True]
        self.parameters = {k: p for k, p in there.items() if p.requires_grad}
        # Of each pass: its number, examples, and their norms or what these come to together.
        self.passes: list[tuple[int, int, Sequence[Tensor | float]]] = []

    def look(self, hooked: Sized, a: Tensor, shape: torch.Size, d: Tensor) -> None:
        """Take in a pass: the input, the output's shape and its gradient; unless `hooked` is empty.

        A graph may go backward after the hooks were taken off.
        """
        if not hooked:
            return
        norms: Sequence[Tensor | float] | None = None
        if self.simple and len(shape) == 2:
            norms = of_rows(a, d, shape)
        if norms is None:
            norms = self._norms(a, d, shape)
        if not self.plain:  # there may be no bias
            norms = [n for n, wanted in zip(norms, self.wanted, strict=False) if wanted]
        self.passes.append((_pass_number(), shape[0], norms))

    def _norms(self, a: Tensor, d: Tensor, shape: torch.Size) -> list[Tensor]:
        if torch.is_grad_enabled():  # a graph of the backward pass itself was asked for
            a, d = a.detach(), d.detach()
        if len(shape) == 2:
            return self.of(self.module, a, d if d.shape == shape else d.reshape(shape))
        # Matrix products are not to be rounded to half precision, whatever the pass runs in.
        with torch.no_grad(), torch.autocast(d.device.type, enabled=False):
            return self.of(self.module, a, d.reshape(shape))
