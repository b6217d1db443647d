"""Scikit-learn's handwritten digits: real data, 8 by 8 pixels, embedded, no network."""

from pathlib import Path
from typing import final

from batchlab.spec import Model, Protocol
from batchlab.workloads.base import Data, Workload

TEST_SAMPLES = 360
SPLIT_SEED = 0  # of the data set, not of a run: all runs share one split


@final
class Digits(Workload):
    """1,437 training and 360 test samples, 64 features, 10 classes."""

    # The article's contrasts on a fortieth of its training samples. Batch sizes are an eighth, so
    # that the large batch still takes several steps an epoch.
    protocol = Protocol(
        workload="digits",
        train_samples=1437,
        model=Model(hidden=(256, 256), initialisation="glorot_uniform"),
        tiny=2,
        small=8,
        middle=32,
        large=128,
        learning_rate=0.01,
        high_learning_rate=0.16,
        epochs=30,
        early_epochs=2,
        trial_batch_sizes=(1, 2, 3, 4, 5, 6, 7, 8, 16, 32, 64, 128, 256, 512, 1024),
        trial_samples=1024,
        draws=50,
        detailed=20,
        crossed=10,
        crossed_batch_sizes=(1, 8, 64, 512, 1024),
        weight_decays=(0.01, 0.1),
    )

    def load(self, data_dir: Path | None) -> Data:  # noqa: ARG002, it has no files
        """The data, split by class, standardised by the training inputs' one mean and deviation."""
        import torch
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        images, labels = load_digits(return_X_y=True)
        train_x, test_x, train_y, test_y = train_test_split(
            images, labels, test_size=TEST_SAMPLES, random_state=SPLIT_SEED, stratify=labels
        )
        mean, deviation = train_x.mean(), train_x.std()
        return Data(
            train_x=torch.tensor((train_x - mean) / deviation, dtype=torch.float32),
            train_y=torch.tensor(train_y, dtype=torch.int64),
            test_x=torch.tensor((test_x - mean) / deviation, dtype=torch.float32),
            test_y=torch.tensor(test_y, dtype=torch.int64),
            classes=10,
        )
