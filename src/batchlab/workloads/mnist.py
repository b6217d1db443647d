"""MNIST, with the article's own protocol. Source: LeCun, Bottou, Bengio & Haffner 1998."""

from pathlib import Path
from typing import TYPE_CHECKING, final

import numpy as np
import numpy.typing as npt

from batchlab.spec import Model, Protocol, UserError
from batchlab.workloads.base import Data, Workload
from batchlab.workloads.idx import read_idx
from batchlab.workloads.source import Source

if TYPE_CHECKING:
    import torch

MEAN, DEVIATION = 0.1307, 0.3081  # of the training pixels over 255, as everyone rounds them

PUBLISHED = Source(
    name="mnist",
    mirrors=(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    sha256={
        "train-images-idx3-ubyte": (
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"
        ),
        "train-labels-idx1-ubyte": (
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"
        ),
        "t10k-images-idx3-ubyte": (
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"
        ),
        "t10k-labels-idx1-ubyte": (
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"
        ),
    },
)


@final
class Mnist(Workload):
    """60,000 training and 10,000 test samples, 784 features, 10 classes."""

    protocol = Protocol(
        workload="mnist",
        train_samples=60000,
        model=Model(hidden=(1024, 1024), initialisation="glorot_uniform"),
        tiny=2,
        small=64,
        middle=256,
        large=1024,
        learning_rate=0.01,
        high_learning_rate=0.1,
        epochs=30,
        early_epochs=2,
        trial_batch_sizes=(1, 2, 3, 4, 5, 6, 7, 8, 16, 32, 64, 128, 256, 512, 1024),
        trial_samples=1024,
        draws=1000,
        detailed=25,
        crossed=20,
        crossed_batch_sizes=(1, 8, 64, 512, 1024),
        weight_decays=(0.01, 0.1),
    )

    def __init__(self, source: Source = PUBLISHED) -> None:
        self._source = source

    def load(self, data_dir: Path | None) -> Data:
        """The data from `data_dir` (None: `BATCHLAB_DATA_DIR`), the cache or a mirror.

        Raises `UserError` where a file is altered or nowhere to be had.
        """
        return Data(
            train_x=_inputs(self._array("train-images-idx3-ubyte", data_dir)),
            train_y=_labels(self._array("train-labels-idx1-ubyte", data_dir)),
            test_x=_inputs(self._array("t10k-images-idx3-ubyte", data_dir)),
            test_y=_labels(self._array("t10k-labels-idx1-ubyte", data_dir)),
            classes=10,
        )

    def _array(self, file: str, data_dir: Path | None) -> npt.NDArray[np.uint8]:
        raw = self._source.read(file, data_dir)
        try:
            return read_idx(raw)
        except UserError as error:
            raise UserError(f"{self.name}: {file}: {error}") from None


def _inputs(pixels: npt.NDArray[np.uint8]) -> "torch.Tensor":
    """Images (N, rows, columns) of bytes as standardised inputs (N, rows * columns), float32."""
    import torch

    x_NI = torch.from_numpy(pixels).flatten(1).to(torch.float32)
    return x_NI.div_(255).sub_(MEAN).div_(DEVIATION)  # in place: they are the largest tensors


def _labels(classes: npt.NDArray[np.uint8]) -> "torch.Tensor":
    import torch

    return torch.from_numpy(classes).to(torch.int64)
