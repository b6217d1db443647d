"""Loss and accuracy of a classifier.

Shapes: N samples, C classes.
"""

from typing import Self

import torch
from torch.nn import functional as F

from batchlab.record import ALL, Reading


class Classification:
    """Mean negative log-likelihood (nats) and the fraction classified rightly, of one split."""

    def __init__(self, split: str) -> None:
        self._split = split
        self._loss = torch.zeros((), dtype=torch.float64)
        self._right = torch.zeros((), dtype=torch.int64)
        self._count = 0

    def update(self, logits_NC: torch.Tensor, y_N: torch.Tensor) -> None:
        """Take in a part of the split; no host-device sync."""
        loss = F.cross_entropy(logits_NC, y_N, reduction="sum")
        self._loss = self._loss.to(loss.device) + loss.double()
        self._right = self._right.to(loss.device) + (logits_NC.argmax(1) == y_N).sum()
        self._count += len(y_N)

    def merge(self, other: Self) -> None:
        """Take in another part of the same split."""
        self._loss = self._loss + other._loss.to(self._loss.device)
        self._right = self._right + other._right.to(self._right.device)
        self._count += other._count

    def compute(self) -> list[Reading]:
        """`{split}_loss` and `{split}_accuracy`; raises `ValueError` where nothing was seen."""
        if not self._count:
            raise ValueError(f"no {self._split} samples were seen")
        return [
            Reading(f"{self._split}_loss", ALL, float(self._loss) / self._count),
            Reading(f"{self._split}_accuracy", ALL, float(self._right) / self._count),
        ]
