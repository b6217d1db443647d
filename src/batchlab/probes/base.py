"""What every probe is."""

from typing import Protocol, Self

import torch

from batchlab.record import BIASES, WEIGHTS, Reading


class Probe(Protocol):
    """An accumulator. Each has its own `update`; merging two equals updating one with both."""

    def merge(self, other: Self) -> None:
        """Take in what another accumulator of the same kind has seen."""

    def compute(self) -> list[Reading]:
        """The readings of all that was seen so far."""


def group(parameter: torch.Tensor) -> str:
    """`weights` for two or more dimensions, else `biases` (gains of norm layers included)."""
    return WEIGHTS if parameter.ndim >= 2 else BIASES
