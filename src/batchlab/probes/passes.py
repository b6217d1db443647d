"""What backward passes have shown of a layer: its examples' gradient norms, pass by pass.

Until a layer is `checked`, also the gradient itself that its calls have, and |.grad| as the passes
left it. Where the two differ, `.grad` is not the sum over the examples that the hooks saw.

Shapes: B examples.
"""

from collections.abc import Iterable, Sequence, Sized

import torch
from torch import Tensor, nn

from batchlab.probes.layers import LAYERS
from batchlab.probes.norms import of_rows, place
from batchlab.probes.squares import wide

SMALL = 2**18  # values of a layer's input and output together that are kept
MANY = 32  # layers whose are kept, so that they are 32 MiB in single precision at the most
# A layer, its pass's number, the output's shape, the input, its version, the output's gradient.
Kept = tuple["Layer", int, torch.Size, Tensor, int, Tensor]
pass_number = torch._C._current_graph_task_id


class Later:
    """What small linear layers keep of a step's one backward pass, for one call to measure.

    Layer by layer, most of the time goes to code that has left the cache since the last.
    """

    __slots__ = ("kept", "measured", "wanted")

    def __init__(self) -> None:
        """Nothing, until it is `wanted`."""
        self.kept: list[Kept] = []
        self.measured = False  # whether layers have norms of passes of this step
        self.wanted = False


class Layer:
    """One module: which parameters it has, and what its backward passes have shown."""

    __slots__ = (
        "checked",
        "later",
        "left",
        "module",
        "name",
        "of",
        "order",
        "parameters",
        "passes",
        "plain",
        "problems",
        "simple",
        "sums",
        "to",
        "weighed",
    )

    def __init__(
        self, name: str, module: nn.Module, first: int, problems: list[str], later: Later
    ) -> None:
        """Its parameters are the model's from `first` on; layers share the last two.

        What goes wrong in a hook is added to `problems`.
        """
        self.name, self.module, self.of = name, module, LAYERS[type(module)]
        self.problems, self.later = problems, later
        self.simple = isinstance(module, nn.Linear)  # of one position: an example is a row
        there = module.named_parameters(recurse=False)
        self.parameters = {k: p for k, p in there if p.requires_grad}
        # Norms come as weight and bias; a module may have registered them the other way round.
        self.order = [("weight", "bias").index(k) for k in self.parameters]
        self.plain = self.order == [0, 1]
        self.weighed = 0 in self.order
        # The model's parameters that weight and bias are, -1 for none.
        self.to = [first + self.order.index(k) if k in self.order else -1 for k in (0, 1)]
        # Of each pass: its number, its forward pass's own shape, and the norms or their total.
        self.passes: list[tuple[int, torch.Size, Sequence[Tensor | float]]] = []
        self.checked = False
        self.sums: list[Tensor] = []  # of all passes, a gradient each parameter
        self.left: Tensor | None = None  # |.grad| of all parameters after the last pass

    def look(self, hooked: Sized, a: Tensor, shape: torch.Size, d: Tensor) -> None:
        """Take in a pass: the input, the output's shape and its gradient; unless `hooked` is empty.

        A graph may go backward after the hooks were taken off.
        """
        if not hooked:
            return
        try:
            self.measure(pass_number(), shape, a, d)
            if not self.checked:
                self._add(a, d.reshape(shape))
        except Exception as error:  # it would end the user's backward pass half done
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            self.problems.append(f"{self.name or 'the model'}: {first}")

    def measure(self, number: int, shape: torch.Size, a: Tensor, d: Tensor) -> None:
        """Add the norms of a pass, of that number."""
        self.later.measured = True
        there = place(a, d, shape) if self.simple and len(shape) == 2 else None
        norms: Sequence[Tensor | float]
        norms = self._norms(a, d, shape) if there is None else of_rows(*there, a.dtype)
        if not self.plain:
            norms = [norms[k] for k in self.order]
        self.passes.append((number, shape, norms))

    def both(self) -> tuple[float, float]:
        """|g| of the calls that were seen, and |.grad| as the last pass left it.

        Later it may be clipped or unscaled. Where no pass wrote it, it is taken as it is now.
        """
        left = self._whole() if self.left is None else self.left
        return float(_norm(self.sums)), 0.0 if left is None else float(left)

    def forget(self) -> None:
        """What is compared in `both`."""
        self.sums, self.left = [], None

    def _norms(self, a: Tensor, d: Tensor, shape: torch.Size) -> list[Tensor]:
        if torch.is_grad_enabled():  # a graph of the backward pass itself was asked for
            a, d = a.detach(), d.detach()
        if len(shape) == 2:
            return self.of(self.module, a, d if d.shape == shape else d.reshape(shape))
        # Matrix products are not to be rounded to half precision, whatever the pass runs in.
        with torch.no_grad(), torch.autocast(d.device.type, enabled=False):
            return self.of(self.module, a, d.reshape(shape))

    def _add(self, a: Tensor, d: Tensor) -> None:
        own = self._gradients(a.detach(), d.detach())
        self.sums = [s + g for s, g in zip(self.sums, own, strict=True)] if self.sums else own
        torch.autograd.Variable._execution_engine.queue_callback(self._end)

    def _gradients(self, a: Tensor, d: Tensor) -> list[Tensor]:
        """This call's gradient of each parameter, by autograd through the layer alone."""
        there = self.module._parameters
        values = {k: None if p is None else wide(p.detach()) for k, p in there.items()}
        alone: nn.Module = object.__new__(type(self.module))
        # It has no hooks, and its parameters are not changed in place.
        alone.__dict__.update(self.module.__dict__, _parameters=values, max_norm=None)
        wanted = [v.requires_grad_() for k in self.parameters if (v := values[k]) is not None]
        with torch.enable_grad(), torch.autocast(d.device.type, enabled=False):
            z = type(self.module).forward(alone, wide(a) if a.is_floating_point() else a)
            return list(torch.autograd.grad(z, wanted, d.to(z.dtype)))

    def _end(self) -> None:
        self.left = self._whole()

    def _whole(self) -> Tensor | None:
        there = [g.detach() for p in self.parameters.values() if (g := p.grad) is not None]
        return _norm(there) if there else None


def _norm(tensors: Iterable[Tensor]) -> Tensor:
    norms = [torch.linalg.vector_norm(wide(t)) for t in tensors]
    told: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return told
