"""What a workload is: data, and the protocol by which the article's experiments run on them.

Shapes: N samples, I features.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, final

from batchlab.spec import Protocol

if TYPE_CHECKING:  # a protocol is asked for where nothing is trained
    import torch


@dataclass(frozen=True, slots=True, eq=False)  # tensors have no one truth value to compare by
class Data:
    """Inputs (N, I), floating and standardised; labels (N), int64 from 0 to `classes` - 1."""

    train_x: "torch.Tensor"
    train_y: "torch.Tensor"
    test_x: "torch.Tensor"
    test_y: "torch.Tensor"
    classes: int

    def to(self, device: "torch.device", dtype: "torch.dtype") -> "Data":
        """The same data on `device`, inputs in `dtype`; moved once, before anything runs."""
        return Data(
            train_x=self.train_x.to(device, dtype),
            train_y=self.train_y.to(device),
            test_x=self.test_x.to(device, dtype),
            test_y=self.test_y.to(device),
            classes=self.classes,
        )


class Workload(ABC):
    """A data set with its protocol. Variants are final; a variation wraps one of them."""

    protocol: Protocol

    @property
    @final
    def name(self) -> str:
        """What the command line and the specs call it."""
        return self.protocol.workload

    @abstractmethod
    def load(self, data_dir: Path | None) -> Data:
        """The data, float32 on the CPU, the same whenever and wherever they are loaded.

        `data_dir` is where the user keeps data files; a workload without files ignores it.
        Raises `UserError` where the data cannot be had.
        """
