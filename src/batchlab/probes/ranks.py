"""The gradient norms of data parallel ranks: a communication hook, and one short all-reduce a step.

The hook of `DistributedDataParallel` sees each bucket of this rank's gradient before it is
averaged; the norm of the average is that of `.grad` after. So every rank is a part of the batch,
and the only thing sent besides is P squares a step.

Shapes: P parameters, R ranks.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from batchlab.probes.hooks import trained
from batchlab.probes.parts import Parts, effective
from batchlab.probes.squares import wide
from batchlab.spec import UserError

Hook = Callable[[Any, Any], torch.futures.Future[Tensor]]  # process group, bucket


class RankNorms:
    """Norms of the ranks' gradients and of their average; `take` on every rank, before clipping.

    `hook` does the communication itself, the usual all-reduce unless another is given. The model
    keeps the hook for good (DDP has no way to remove one): make one `RankNorms` a model.
    """

    def __init__(self, model: DistributedDataParallel, hook: Hook = allreduce_hook) -> None:
        """Raises `UserError` where there is one rank: it is no part of anything."""
        self._group = model.process_group
        self._ranks = dist.get_world_size(self._group)
        if self._ranks < 2:
            raise UserError("one rank is the whole batch: use per-example norms or chunks instead")
        own = trained(model.module)
        self.names = tuple(own)
        self.active = True
        self._parameters = list(own.values())
        self._place = {id(p): k for k, p in enumerate(self._parameters)}
        self._own: dict[int, Tensor] = {}
        self._hook = hook
        model.register_comm_hook(None, self._communicate)

    def take(self, examples: int | Sequence[int], scale: float = 1.0) -> Parts:
        """The norms of a step, the same on every rank: all ranks call it, each step or none.

        `examples` are those of one rank, accumulated ones included; where ranks differ, of all of
        them in order. Ranks weigh equally in the average, as DDP has it. `scale` is by what the
        mean gradient of a rank's examples is multiplied in `.grad`: 1 for a mean loss, the number
        of examples for a summed one, of micro-batches where their means are summed.
        """
        sizes = [examples] * self._ranks if isinstance(examples, int) else list(examples)
        if len(sizes) != self._ranks:
            raise UserError(f"{self._ranks} ranks need {self._ranks} sizes, not {len(sizes)}")
        _, small, big = effective(sizes, [1.0] * self._ranks)
        own, self._own = self._own, {}
        if len(own) < len(self._parameters):
            raise UserError("not all gradients were seen: take after a backward pass that syncs")
        with torch.no_grad():
            own_P = torch.stack([own[k] for k in range(len(self._parameters))])
            mean = [p.grad for p in self._parameters if p.grad is not None]
            if len(mean) < len(self._parameters):
                raise UserError("a gradient is missing: take before zero_grad")
            whole_P = torch.stack(torch._foreach_norm([wide(g) for g in mean]))
            # Squares add up over ranks; in double, so that none falls out of range.
            square_P = own_P.double().square_().div_(self._ranks)
            dist.all_reduce(square_P, group=self._group)
            norms_2P = torch.stack([square_P.sqrt_(), whole_P.double()]) / scale
        return Parts(norms_2P, sum(sizes), small, big)

    def _communicate(
        self,
        _: object,
        bucket: dist.GradBucket,  # type: ignore[name-defined]  # DDP wants to read it
    ) -> torch.futures.Future[Tensor]:
        if self.active:
            norms = torch._foreach_norm([wide(g.detach()) for g in bucket.gradients()])
            places = (self._place[id(p)] for p in bucket.parameters())
            self._own.update(zip(places, norms, strict=True))
        return self._hook(self._group, bucket)
