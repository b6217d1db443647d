"""Both noise scales of a user's workload where a run stands, without moving it.

Independent draws of chunks from the training data, with replacement, so that samples are
independent and G and Sigma are the training set's own. A copy of the model is measured:

- Dropout and random data draw as they do in training, under seeds of their own; their noise is
  part of Sigma.
- Batch norm goes by its running averages, as a mean over examples has no batch statistics; what
  the gradient has through these is not measured.
- An adaptive optimizer's metric D is that of its second moment one step on, in expectation: from
  independent batches of the run's size. D as it stands before a step has no bound where a weight
  has had no gradient yet. Momentum is left out.
- Parameters and inputs in half precision are widened to single. A loss that itself asks for
  automatic mixed precision gets it.
- The loss is measured as it is given: neither weight decay of the optimizer nor what `before_step`
  does (clipping) is in it. Parameter groups keep the ratios of their rates.

Shapes: K chunks, b examples of each, M micro-batches, N training samples.
"""

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from batchlab.engine.draws import derived, generator
from batchlab.engine.general import GeneralRun
from batchlab.probes.curvature import FEWEST_CHUNKS, CurvatureStatistics, draw
from batchlab.probes.hessian import Loss, gradient
from batchlab.probes.preconditioner import metric_roots
from batchlab.probes.squares import wide
from batchlab.record import CurvatureSeries
from batchlab.spec import UserError, batch_slices
from batchlab.workloads.objective import shares
from batchlab.workloads.optimizers import base_rate, rebuild
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

    The work is that of 2 `chunks` gradients a sample (6), and one more for an adaptive optimizer's
    metric; the memory that of a chunk's double backward pass (of the run's micro-batch where it has
    one) and 2 `chunks` + 3 times the parameters. `metric` "plain" measures as if for SGD. The run,
    its optimizer and the generators are left as they were, to the bit. Raises `UserError` where
    there are too few samples, draws or chunks, the optimizer has no known metric, or a gradient is
    not finite.
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
    workload, notes, work = run.workload, [], 2 * chunks * draws * chunks * size
    statistics = CurvatureStatistics()
    with forked(workload.device):
        model = _copy(run)
        if frozen := len(workload.batch_norm):
            notes.append(f"batch norm ({frozen} layers) measured by its running averages")
        roots = None
        if metric == "optimizer" and not isinstance(run.optimizer, torch.optim.SGD):
            batch = min(samples, run.settings.batch_size)
            roots = metric_roots(model, _ahead(run, model, seed, samples // batch, batch))
            _load(model, run)
            work += samples // batch * batch
        weighed = _metric(run, model, roots)
        parameters = [p for p, _ in weighed]
        for counter in range(draws):
            drawn = generator(seed, "curvature", counter)
            rows = torch.randint(len(workload.train), (chunks, size), generator=drawn)
            losses = [
                _losses(run, model, own, seed, counter * chunks + place)
                for place, own in enumerate(rows)
            ]
            statistics.update(draw(losses, parameters, size, [d for _, d in weighed]))
    if not statistics.exact:
        notes.append("the loss can't be differentiated twice: gradients were differenced")
    series = statistics.compute()
    if not all(np.isfinite(v).all() for v in series):
        raise UserError(
            f"curvature: a gradient or its derivative is not finite at step {run.place.step}; "
            f"measure before the run diverges"
        )
    return Measured(series, work, tuple(notes))


def _metric(
    run: GeneralRun, model: nn.Module, roots: Mapping[str, Tensor] | None
) -> list[tuple[Tensor, Tensor]]:
    """The copy's parameters that are stepped, and D of each, relative to the first group's rate."""
    base = base_rate(run.optimizer)
    names = {id(p): name for name, p in run.model.named_parameters() if p.requires_grad}
    mine = dict(model.named_parameters())
    told: list[tuple[Tensor, Tensor]] = []
    for group in run.optimizer.param_groups:
        ratio = float(group["lr"]) / base if base else 1.0
        for name in (names[id(p)] for p in group["params"] if id(p) in names):
            root = torch.ones_like(mine[name]) if roots is None else roots[name]
            told.append((mine[name], root.detach() ** 2 * ratio))
    return told


def _ahead(
    run: GeneralRun, model: nn.Module, seed: int, batches: int, size: int
) -> torch.optim.Optimizer:
    """The run's optimizer on the copy, one step on: by the mean of so many batches' squares.

    Its second moment before the step is no metric: where a weight has had no gradient yet, D is
    1 / eps, and the first sample to give it one outweighs all else. The copy's weights move.
    """
    optimizer = rebuild(run.optimizer, run.model, model)
    optimizer.load_state_dict(copy.deepcopy(run.optimizer.state_dict()))
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    squares = [torch.zeros_like(p) for p in parameters]
    for counter in range(batches):
        drawn = generator(seed, "curvature metric", counter)
        rows = torch.randint(len(run.workload.train), (size,), generator=drawn)
        losses = _losses(run, model, rows, seed, -1 - counter)
        own = [gradient(loss, parameters) for loss in losses]
        for square, *parts in zip(squares, *own, strict=True):
            square.add_(sum(parts) ** 2)
    for p, square in zip(parameters, squares, strict=True):
        p.grad = (square / batches).sqrt_()
    optimizer.step()
    optimizer.zero_grad()
    return optimizer


def _copy(run: GeneralRun) -> nn.Module:
    """A model of the same values, without the run's hooks, in single precision or more."""
    model = copy.deepcopy(run.workload.given.model).train()
    _load(model, run)
    if any(p.dtype != wide(p).dtype for p in model.parameters()):
        model.float()
    for name in run.workload.batch_norm:
        model.get_submodule("" if name == "itself" else name).eval()
    return model


def _load(model: nn.Module, run: GeneralRun) -> None:
    model.load_state_dict(run.model.state_dict())


def _losses(
    run: GeneralRun, model: nn.Module, rows: Tensor, seed: int, counter: int
) -> Sequence[Loss]:
    """Of one chunk: the losses of its micro-batches, which add up to its mean loss.

    Those of weight 0 are left out; `UserError` where all are.
    """
    objective, device = run.workload.objective, run.workload.device
    train = run.workload.train
    rows = rows.to(train.device)
    reseed(derived(seed, "curvature data", counter), device)
    parts = list(batch_slices(len(rows), run.settings.micro_batch or len(rows)))
    batches = [_wide(train.batch(rows[part])) for part in parts]
    weights: list[Any] = [
        objective.share(batch, part.stop - part.start)
        for batch, part in zip(batches, parts, strict=True)
    ]
    there = [place for place, weight in enumerate(weights) if weight > 0]
    if not there:
        raise UserError(f"curvature: {len(rows)} samples have no weight; must be more a chunk")
    share_M = shares(weights)

    def loss(batch: Any, share: Any, place: int) -> Tensor:
        # The same draws of dropout every time that this loss is computed.
        reseed(derived(seed, f"curvature part {place}", counter), device)
        told: Tensor = objective(model, batch) * share
        return told

    return [partial(loss, batches[place], share_M[place], place) for place in there]


def _wide(batch: Any) -> Any:
    return map_tensors(lambda t: wide(t) if t.is_floating_point() else t, batch)
