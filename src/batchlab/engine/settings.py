"""A general run's settings, where it stands, and everything to go on from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Settings:
    """What may change from one stretch of a run to the next; None keeps the user's.

    `learning_rate` is the first parameter group's, to which the others keep their ratios.
    `options` go to every group: `beta1`, `beta2`, `weight_decay`, `momentum`, ...
    `micro_batch` samples at a time are passed forward and backward, and their gradients
    accumulated.
    """

    batch_size: int
    learning_rate: float | None = None
    micro_batch: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Place:
    """How far a run has come; the data order needs no more than `epoch` and `cursor`."""

    step: int = 0  # steps taken in all
    samples: int = 0  # samples seen in all
    epoch: int = 0  # passes over the data before the current one
    cursor: int = 0  # samples seen in the current pass


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """Everything to go on from, as if the run had never stopped: tensors of its own."""

    model: dict[str, Any]
    optimizer: dict[str, Any]
    place: Place
    settings: Settings
    seed: int
