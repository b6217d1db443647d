"""What gradient clipping and unscaling left of a gradient, from one parameter that shows it.

Both multiply all gradients by one number. A hook sees the last parameter's gradient as the backward
pass left it; beside what stands in `.grad` later, that tells the number, on the device.
"""

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from batchlab.probes.hooks import Hooked, trained
from batchlab.probes.squares import entries
from batchlab.spec import UserError


class Witness(Hooked):
    """The last trained parameter of a model: mostly a head's, which every pass reaches."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._parameter = list(trained(model).values())[-1]
        self._seen: Tensor | None = None
        self.active = True

    def left(self) -> Tensor:
        """The factor by which the gradient was multiplied since; not finite where it is zero."""
        now, seen, self._seen = self._parameter.grad, self._seen, None
        if now is None or seen is None:
            raise UserError("the last parameter has no gradient: clipped=True needs one")
        told: Tensor = torch.linalg.vector_norm(entries(now)) / seen
        return told

    def _attach(self) -> list[RemovableHandle]:
        return [self._parameter.register_post_accumulate_grad_hook(self._accumulated)]

    def _accumulated(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        self._seen = torch.linalg.vector_norm(entries(parameter.grad))
