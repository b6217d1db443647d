"""Both noise scales of a user's workload where a run stands, without moving it.

Independent draws of chunks from the training data, with replacement, so that samples are
independent and G and Sigma are the training set's own. A copy of the model is measured:

- Dropout and random data draw as they do in training, under seeds of their own; their noise is
  part of Sigma.
- Batch norm goes by its running averages, as a mean over examples has no batch statistics; what
  the gradient has through these is not measured.
- Parameters and inputs in half precision are widened to single. A loss that itself asks for
  automatic mixed precision gets it.
- The loss is measured as it is given: neither weight decay of the optimizer nor what `before_step`
  does (clipping) is in it. Parameter groups keep the ratios of their rates.

Shapes: K chunks, b examples of each, N training samples.
"""

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import nn

from batchlab.engine.draws import derived, generator
from batchlab.engine.general import GeneralRun
from batchlab.probes.curvature import FEWEST_CHUNKS, CurvatureStatistics, draw
from batchlab.probes.hessian import Loss
from batchlab.probes.preconditioner import metric_roots
from batchlab.probes.squares import wide
from batchlab.record import CurvatureSeries
from batchlab.spec import UserError, batch_slices
from batchlab.workloads.optimizers import base_rate
from batchlab.workloads.seeding import forked, reseed
from batchlab.workloads.tree import map_tensors

DRAWS = 10
Metric = Literal["optimizer", "plain"]


class Measured(NamedTuple):
    """The series for `analysis.curvature`, what it cost, and what the user should know."""

    series: CurvatureSeries
    gradients: int  # of one example, a Hessian-vector product counted as two
    notes: tuple[str, ...]


def measure(
    run: GeneralRun,
    samples: int,
    seed: int = 0,
    *,
    draws: int = DRAWS,
    chunks: int = FEWEST_CHUNKS,
    metric: Metric = "optimizer",
) -> Measured:
    """At the run's weights, from `samples` (or the most below that share out evenly).

    The work is that of 2 `chunks` gradients a sample (6), the memory that of a chunk's double
    backward pass (of the run's micro-batch where it has one) and 2 `chunks` + 3 times the
    parameters. `metric` "plain" measures as if for SGD. The run, its optimizer and the generators
    are left as they were, to the bit. Raises `UserError` where there are too few samples, draws or
    chunks, the optimizer has no known metric or has made no step yet, or a gradient is not finite.
    """
    if chunks < FEWEST_CHUNKS or draws < 2:
        raise UserError(
            f"curvature: {draws} draws of {chunks} chunks; must be 2 or more of "
            f"{FEWEST_CHUNKS} or more"
        )
    size = samples // (draws * chunks)
    if size < 1:
        raise UserError(
            f"samples: {samples}; must be {draws * chunks} or more for {draws} draws of "
            f"{chunks} chunks"
        )
    workload, notes = run.workload, []
    parameter_metric = _metric(run, metric)
    statistics = CurvatureStatistics()
    with forked(workload.device):
        model = _copy(run)
        if frozen := len(workload.batch_norm):
            notes.append(f"batch norm ({frozen} layers) measured by its running averages")
        named = dict(model.named_parameters())
        parameters = [named[name] for name in parameter_metric]
        for counter in range(draws):
            drawn = generator(seed, "curvature", counter)
            rows = torch.randint(len(workload.train), (chunks, size), generator=drawn)
            losses = [
                _losses(run, model, own.to(workload.train.device), seed, counter * chunks + place)
                for place, own in enumerate(rows)
            ]
            statistics.update(draw(losses, parameters, size, list(parameter_metric.values())))
    if not statistics.exact:
        notes.append("the loss can't be differentiated twice: gradients were differenced")
    series = statistics.compute()
    if not all(np.isfinite(v).all() for v in series):
        raise UserError(
            f"curvature: a gradient or its derivative is not finite at step {run.place.step}; "
            f"measure before the run diverges"
        )
    return Measured(series, draws * chunks * size * 2 * chunks, tuple(notes))


def _metric(run: GeneralRun, metric: Metric) -> dict[str, torch.Tensor]:
    """D of every parameter that is stepped, by name, relative to the first group's rate."""
    base = base_rate(run.optimizer)
    names = {id(p): name for name, p in run.model.named_parameters() if p.requires_grad}
    roots = metric_roots(run.model, run.optimizer) if metric == "optimizer" else None
    told = {}
    for group in run.optimizer.param_groups:
        ratio = float(group["lr"]) / base if base else 1.0
        for p in group["params"]:
            if (name := names.get(id(p))) is not None:
                root = torch.ones_like(p) if roots is None else roots[name]
                told[name] = wide(root.detach()) ** 2 * ratio
    return told


def _copy(run: GeneralRun) -> nn.Module:
    """A model of the same values, without the run's hooks, in single precision or more."""
    model = copy.deepcopy(run.workload.given.model).train()
    model.load_state_dict(run.model.state_dict())
    if any(p.dtype != wide(p).dtype for p in model.parameters()):
        model.float()
    for name in run.workload.batch_norm:
        model.get_submodule("" if name == "itself" else name).eval()
    return model


def _losses(
    run: GeneralRun, model: nn.Module, rows: torch.Tensor, seed: int, counter: int
) -> Sequence[Loss]:
    """Of one chunk: the losses of its micro-batches, which add up to its mean loss."""
    objective, device = run.workload.objective, run.workload.device
    reseed(derived(seed, "curvature data", counter), device)
    parts = list(batch_slices(len(rows), run.settings.micro_batch or len(rows)))
    batches = [_wide(run.workload.train.batch(rows[part])) for part in parts]
    shares: list[Any] = [
        objective.share(batch, part.stop - part.start)
        for batch, part in zip(batches, parts, strict=True)
    ]

    def loss(batch: Any, share: Any, place: int) -> torch.Tensor:
        # The same draws of dropout every time that this loss is computed.
        reseed(derived(seed, f"curvature part {place}", counter), device)
        told: torch.Tensor = objective(model, batch) * share
        return told

    return [
        partial(loss, batch, share / sum(shares), place)
        for place, (batch, share) in enumerate(zip(batches, shares, strict=True))
    ]


def _wide(batch: Any) -> Any:
    return map_tensors(lambda t: wide(t) if t.is_floating_point() else t, batch)
