"""A perceptron on MNIST with plain SGD; data as `batchlab` finds them (BATCHLAB_DATA_DIR)."""

from functools import lru_cache

import torch
from torch import nn
from torch.nn import functional as F

from batchlab import ACCURACY, UserWorkload
from batchlab.workloads.base import Data
from batchlab.workloads.mnist import Mnist

TRAIN, VALIDATION = 12_000, 2_000  # of 60,000 and 10,000: a sweep in minutes


@lru_cache(maxsize=1)
def data() -> Data:
    return Mnist().load(None)


def factory() -> UserWorkload:
    model = nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))
    return UserWorkload(
        model=model,
        train=(data().train_x[:TRAIN], data().train_y[:TRAIN]),
        validation=(data().test_x[:VALIDATION], data().test_y[:VALIDATION]),
        loss=F.cross_entropy,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.05),
        batch_size=32,
        metric=ACCURACY,
        target=0.91,
        name="mnist_mlp",
    )
