"""From what a user brings to what can be trained; whatever is wrong with it is said here."""

import copy
from collections.abc import Iterator
from math import isfinite
from typing import Any

import torch
from torch import nn

from batchlab.spec import UserError
from batchlab.workloads import optimizers
from batchlab.workloads.failures import trying
from batchlab.workloads.objective import Metric, Objective
from batchlab.workloads.prepared import Factory, Prepared
from batchlab.workloads.samples import Samples
from batchlab.workloads.seeding import drawn, forked, reseed
from batchlab.workloads.split import read
from batchlab.workloads.user import UserWorkload

CHECKED = 64  # samples of the batch that the loss is tried on, at the most
TWIN = 0.01  # a mean loss of every sample twice is the same, a summed one twice as large
PARTS = 1e-4  # a mean of parts' means is the whole's mean, to rounding


def prepare(workload: UserWorkload, *, factory: Factory | None = None) -> Prepared:
    """Check the workload and get its data ready; `factory` makes it again, for fresh starts.

    One batch is passed forward and backward by a copy of the model; the user's own and the global
    generators are left as they were. Raises `UserError`, one line, for what cannot be trained.
    """
    if not isinstance(workload, UserWorkload):
        raise UserError(f"workload: got {_kind(workload)}; must be a batchlab.UserWorkload")
    model = workload.model
    if not isinstance(model, nn.Module):
        raise UserError(f"model: got {_kind(model)}; must be a torch.nn.Module")
    if workload.metric is not None and not isinstance(workload.metric, Metric):
        raise UserError(
            f"metric: got {_kind(workload.metric)}; must be a batchlab.Metric, which says whether "
            f'higher is better, like Metric(function, better="higher")'
        )
    device = _device(model)
    if not any(p.requires_grad for p in model.parameters()):
        raise UserError("model: all parameters are frozen; at least one must require a gradient")
    optimizers.check(workload.optimizer, model)
    with trying("data"):
        train = read("training", workload.train, device)
        validation = read("validation", workload.validation, device)
    size = _size(workload.batch_size or train.batch_size, train.samples)
    if not len(validation.samples):
        raise UserError("validation data: no samples; give some that are not trained on")
    norms = batch_norms(model)
    objective = Objective(workload.loss, workload.metric, workload.weight)
    random, notes = _try(workload, objective, train.samples, validation.samples, size, device)
    notes = [*train.notes, *validation.notes, *notes]
    drop_last = train.drop_last
    if norms:
        notes.append(
            f"batch norm ({len(norms)} layers, the first {norms[0]}): per-example gradients do not "
            f"exist, statistics are of the micro-batch, so that accumulation is not a large batch; "
            f"a last short batch is left out"
        )
        drop_last = True
    return Prepared(
        given=workload,
        train=train.samples,
        validation=validation.samples,
        objective=objective,
        batch_size=size,
        device=device,
        drop_last=drop_last,
        random=random or not train.samples.in_memory,
        batch_norm=norms,
        notes=tuple(notes),
        factory=factory,
    )


def batch_norms(model: nn.Module) -> tuple[str, ...]:
    """Names of the layers that normalise by the batch while training, synchronised ones too."""
    kind = nn.modules.batchnorm._BatchNorm
    return tuple(name or "itself" for name, m in model.named_modules() if isinstance(m, kind))


def _device(model: nn.Module) -> torch.device:
    devices = {p.device for p in model.parameters()} | {b.device for b in model.buffers()}
    if not devices:
        raise UserError("model: no parameters; must have some to train")
    if len(devices) > 1:
        told = " and ".join(sorted(str(d) for d in devices))
        raise UserError(f"model: its parameters are on {told}; must be on one device")
    device = devices.pop()
    if device.type == "meta":
        raise UserError("model: on the device meta, without values; must be on a real device")
    return device


def _size(size: Any, samples: Samples) -> int:
    if size is None:
        raise UserError(
            "batch_size: none given, and the training data are no DataLoader that has one; "
            "give the batch size you use now"
        )
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise UserError(f"batch_size: got {size!r}; must be a whole number, 1 or more")
    if len(samples) < 2 * size:
        raise UserError(
            f"training data: {len(samples)} samples are fewer than two batches of {size}; "
            f"give more data or a batch_size of {len(samples) // 2 or 'fewer'} or less"
            if len(samples) > 1
            else f"training data: {len(samples)} samples; give at least two batches of {size}"
        )
    return size


def _try(
    workload: UserWorkload,
    objective: Objective,
    train: Samples,
    validation: Samples,
    size: int,
    device: torch.device,
) -> tuple[bool, list[str]]:
    """Whether training draws, and notes, from a batch passed forward and backward by a copy."""
    count = min(size, CHECKED)
    with forked(device):
        with trying("model: a copy"):
            model = copy.deepcopy(workload.model).train()
        optimizer = optimizers.rebuild(workload.optimizer, workload.model, model)
        reseed(0, device)
        rows = torch.arange(count, device=train.device)
        with trying("data"):
            batch = train.batch(rows)
        before = drawn(device)
        with trying("model or loss", count):
            loss = objective(model, batch)
        if not loss.requires_grad:
            raise UserError(
                "loss: has no gradient; must depend on parameters that require one "
                "(no detach, no torch.no_grad)"
            )
        if not isfinite(float(loss.detach())):
            raise UserError(
                f"loss: {float(loss.detach())} on the first {count} samples before any step; "
                f"must be finite (look for NaN in the data, or log of 0)"
            )
        theirs = [p for p in workload.model.parameters() if p.requires_grad]
        with trying("backward pass", count):
            own = torch.autograd.grad(loss, theirs, retain_graph=True, allow_unused=True)
            if any(g is not None for g in own):
                raise UserError(
                    "loss: uses the factory's model itself, but copies of it are trained; must use "
                    "the model it is given, as loss(model, batch)"
                )
            loss.backward()
        stepped = [p for g in optimizer.param_groups for p in g["params"]]
        if all(p.grad is None for p in stepped):
            raise UserError(
                "optimizer: none of its parameters gets a gradient from the loss; "
                "must have parameters that the loss depends on"
            )
        random = drawn(device) != before
        notes = ["the forward pass draws at random (dropout, say); seeded step by step"] * random
        model.eval()
        with torch.no_grad(), trying("model, loss or metric in eval()", count):
            notes += _mean(objective, model, train, rows)
            first = torch.arange(min(count, len(validation)), device=validation.device)
            objective.measure(model, validation.batch(first), float(len(first)))
    if not train.in_memory:
        notes.append(
            "training samples are collated batch by batch, as they do not fit in tensors "
            "once for all (random, padded, large or slow)"
        )
    return random, notes


def _mean(
    objective: Objective, model: nn.Module, train: Samples, rows: torch.Tensor
) -> Iterator[str]:
    """Whether the loss is a mean, by a batch's twin, and over samples, by its two parts."""
    if not train.in_memory:  # samples may change, or be padded otherwise in another batch
        return
    half = rows[: (len(rows) + 1) // 2]  # twice a half, so that memory suffices
    once = float(objective(model, train.batch(half)))
    twice = float(objective(model, train.batch(half.repeat(2))))
    if once and abs(twice / once - 2) < TWIN:
        raise UserError(
            f"loss: twice as large for a batch of every sample twice ({once:.4g}, {twice:.4g}), "
            f'so a sum; must be the batch\'s mean (reduction="mean")'
        )
    whole = float(objective(model, train.batch(rows)))
    cut = (len(rows) + 2) // 3
    parts = [r for r in (rows[:cut], rows[cut:]) if len(r)]
    batches = [train.batch(r) for r in parts]
    shares = [float(objective.share(b, len(r))) for b, r in zip(batches, parts, strict=True)]
    joined = sum(
        float(objective(model, b)) * share for b, share in zip(batches, shares, strict=True)
    ) / sum(shares)
    if abs(joined - whole) > PARTS * abs(whole):
        yield (
            "the loss of a batch is not the mean of its parts' losses, weighted by "
            f"{'samples' if objective.weight is None else 'weight'} ({whole:.4g}, {joined:.4g}): "
            "accumulation is not a large batch; give weight=batch -> what the loss is a mean over"
        )


def _kind(value: Any) -> str:
    return "None" if value is None else type(value).__name__
