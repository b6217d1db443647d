"""Loss and metric of a user's model on a split.

Shapes: P parts of the split, each a forward pass.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from batchlab.spec import batch_slices
from batchlab.workloads.objective import weighed
from batchlab.workloads.prepared import Prepared
from batchlab.workloads.samples import Samples
from batchlab.workloads.seeding import forked, reseed

ROWS = 4096  # samples of a forward pass, at the most
BYTES = 2**26  # and their inputs' bytes


class Evaluation(NamedTuple):
    """Of one split, in eval() mode: the mean loss, and the metric where there is one."""

    loss: float
    metric: float | None
    samples: int


@torch.no_grad()
def evaluate(model: nn.Module, workload: Prepared, data: Samples) -> Evaluation:
    """Loss and metric of the model on the samples, in eval() mode, as few batches as fit.

    Where the device has no memory for a batch, half of it is tried. Modes and the global
    generators are put back.
    """
    objective, count = workload.objective, len(data)
    size = max(1, min(ROWS, count, BYTES // max(1, data.bytes_each())))
    with kept_modes(model), forked(workload.device):
        model.eval()
        reseed(0, workload.device)
        while True:
            try:
                return _evaluated(model, objective, data, size)
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
                size //= 2


def _evaluated(model: nn.Module, objective: Any, data: Samples, size: int) -> Evaluation:
    rows = torch.arange(len(data), device=data.device)
    losses, metrics, shares = [], [], []
    for part in batch_slices(len(data), size):
        batch, count = data.batch(rows[part]), part.stop - part.start
        loss, metric = objective.measure(model, batch, float(count))
        losses.append(loss)
        shares.append(torch.as_tensor(objective.share(batch, count), device=loss.device))
        metrics += [] if metric is None else [metric]
    loss_P, share_P = (torch.stack(parts).cpu().double() for parts in (losses, shares))
    mean = float(weighed(loss_P, share_P).sum() / share_P.sum())
    told = float(torch.stack(metrics).cpu().double().sum()) / len(data) if metrics else None
    return Evaluation(mean, told, len(data))


@contextmanager
def kept_modes(model: nn.Module) -> Iterator[None]:
    """Every module's own mode, training or not, is put back."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
