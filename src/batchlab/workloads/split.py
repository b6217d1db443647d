"""A user's training or validation data, in any of the forms they have, as samples."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    default_collate,
)

from batchlab.spec import UserError
from batchlab.workloads.samples import Items, Samples, Tensors
from batchlab.workloads.seeding import forked
from batchlab.workloads.tree import leaves

FORMS = (
    "must be a tuple of tensors (x, y), a dict of tensors, a map-style Dataset or a sized "
    "DataLoader"
)


@dataclass(frozen=True, slots=True)
class Split:
    """Samples, and what a `DataLoader` said besides."""

    samples: Samples
    batch_size: int | None = None
    drop_last: bool = False
    notes: tuple[str, ...] = ()


def read(name: str, data: Any, device: torch.device) -> Split:
    """The samples of `data`, which are called `name` in errors, for a model on `device`.

    Small data sets whose items stay the same become tensors. Data on the CPU are moved to the
    model's device. Raises `UserError` where the data have none of the forms or do not fit together.
    """
    if isinstance(data, DataLoader):
        return _loader(name, data, device)
    if isinstance(data, Dataset) or _like_dataset(data):
        return Split(_items(name, data, default_collate, device))
    if not isinstance(data, tuple | list | Mapping) or not data:
        raise UserError(f"{name} data: got {type(data).__name__}; {FORMS}")
    tensors = list(leaves(data))
    for leaf in tensors:
        if not isinstance(leaf, torch.Tensor):
            raise UserError(f"{name} data: holds {type(leaf).__name__}; {FORMS}")
    lengths = [len(t) if t.ndim else 0 for t in tensors]
    if len(set(lengths)) > 1:
        told = " and ".join(str(n) for n in dict.fromkeys(lengths))
        raise UserError(f"{name} data: tensors of {told} samples; all must have as many")
    for leaf in tensors:
        if leaf.device.type != "cpu" and leaf.device != device:
            raise UserError(
                f"{name} data are on {leaf.device}, the model is on {device}; "
                f"put both on one device, or leave the data on the CPU"
            )
    return Split(Tensors(data if isinstance(data, Mapping) else tuple(data), device))


def _like_dataset(data: Any) -> bool:
    """A map-style data set by what it can do (Hugging Face's are of a class of their own)."""
    plain = isinstance(data, tuple | list | Mapping | torch.Tensor)
    return not plain and hasattr(data, "__getitem__") and hasattr(data, "__len__")


def _items(name: str, dataset: Any, collate: Any, device: torch.device) -> Samples:
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise UserError(
            f"{name} data: {type(dataset).__name__} has no length or no random access; {FORMS}"
        )
    if not len(dataset):
        raise UserError(f"{name} data: no samples; give at least two batches")
    items = Items(dataset, collate, device)
    with forked(device):
        return items.in_tensors()


def _loader(name: str, loader: DataLoader[Any], device: torch.device) -> Split:
    if isinstance(loader.dataset, IterableDataset):
        raise UserError(
            f"{name} data: a DataLoader over {type(loader.dataset).__name__}, an IterableDataset "
            f"without length or random access; {FORMS}"
        )
    size = loader.batch_size
    if size is None:
        size = getattr(loader.batch_sampler, "batch_size", None)
    if size is None:
        raise UserError(
            f"{name} data: the DataLoader makes no batches itself (batch_size=None); "
            f"give it a batch_size and single samples"
        )
    dataset: Any = loader.dataset
    sampler = getattr(loader.batch_sampler, "sampler", loader.sampler)
    notes = []
    if isinstance(sampler, SubsetRandomSampler):
        dataset = Subset(dataset, [int(index) for index in sampler.indices])
    elif name == "training" and isinstance(sampler, SequentialSampler):
        notes.append("the training DataLoader does not shuffle; batches here are shuffled")
    elif name == "training" and not isinstance(sampler, RandomSampler):
        notes.append(
            f"the training DataLoader's {type(sampler).__name__} is not used: every epoch here "
            f"visits every sample once, shuffled"
        )
    samples = _items(name, dataset, loader.collate_fn, device)
    if not samples.in_memory and loader.num_workers:
        notes.append(
            f"{name} samples are loaded in this process, not in {loader.num_workers} workers"
        )
    return Split(samples, int(size), bool(loader.drop_last), tuple(notes))
