"""A small convolutional network on MNIST, SGD with momentum (BATCHLAB_DATA_DIR)."""

from functools import lru_cache

import torch
from torch import nn
from torch.nn import functional as F

from batchlab import ACCURACY, UserWorkload
from batchlab.workloads.base import Data
from batchlab.workloads.mnist import Mnist

TRAIN, VALIDATION = 12_000, 1_000  # of 60,000 and 10,000: a sweep in minutes


@lru_cache(maxsize=1)
def data() -> Data:
    return Mnist().load(None)


def factory() -> UserWorkload:
    model = nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)),
        nn.Conv2d(1, 8, 5, stride=2),
        nn.ReLU(),
        nn.Conv2d(8, 16, 5, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 10),
    )
    return UserWorkload(
        model=model,
        train=(data().train_x[:TRAIN], data().train_y[:TRAIN]),
        validation=(data().test_x[:VALIDATION], data().test_y[:VALIDATION]),
        loss=F.cross_entropy,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9),
        batch_size=32,
        metric=ACCURACY,
        target=0.94,
        name="mnist_cnn",
    )
