"""Rows of numbers that come to the host many at a time, so that no step waits for the device.

Shapes: S steps.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Row = torch.Tensor | Floats | Sequence[Sequence[float]]
BLOCK = 256  # steps that stay on the device before they come to the host together


class Blocks:
    """One tensor, array or list a step, all of one shape; float64 on the host when asked for.

    With `total`, what is kept is the Euclidean norm over the last dimension, which is then 1.
    """

    def __init__(self, *, total: bool = False) -> None:
        self._total = total
        self._pending: list[Row] = []
        self._there: list[Floats] = []  # (steps, ...) each

    def add(self, row: Row) -> None:
        """Take in one step's; no host-device sync but once in `BLOCK` steps."""
        self._pending.append(row.detach() if isinstance(row, torch.Tensor) else row)
        if len(self._pending) == BLOCK:
            self._fetch()

    def append(self, other: "Blocks") -> None:
        """The steps of another after one's own."""
        self._fetch()
        other._fetch()
        self._there += other._there

    def array(self, last: int | None = None) -> Floats | None:
        """All steps (S, ...), or the last so many, read alone; `None` where there are none."""
        self._fetch()
        first, rows = len(self._there), 0
        while first and (last is None or rows < last):
            first -= 1
            rows += len(self._there[first])
        if not rows:
            return None
        told = np.concatenate(self._there[first:])
        return told if last is None else told[max(0, rows - last) :]

    def _fetch(self) -> None:
        if self._pending:
            if any(isinstance(row, torch.Tensor) for row in self._pending):
                stacked = torch.stack(
                    [
                        row if isinstance(row, torch.Tensor) else torch.as_tensor(np.asarray(row))
                        for row in self._pending
                    ]
                )
                rows: Floats = stacked.double().cpu().numpy()
            else:
                rows = np.array(self._pending)
            self._pending.clear()
            if self._total:
                rows = np.linalg.norm(rows, axis=-1, keepdims=True)
            self._there.append(rows)
