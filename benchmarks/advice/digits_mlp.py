"""A perceptron on scikit-learn's digits with plain SGD: `digits_mlp.py:factory` as TARGET."""

from functools import lru_cache

import torch
from torch import nn
from torch.nn import functional as F

from batchlab import ACCURACY, UserWorkload
from batchlab.workloads.base import Data
from batchlab.workloads.digits import Digits


@lru_cache(maxsize=1)
def data() -> Data:
    return Digits().load(None)


def factory() -> UserWorkload:
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    return UserWorkload(
        model=model,
        train=(data().train_x, data().train_y),
        validation=(data().test_x, data().test_y),
        loss=F.cross_entropy,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        batch_size=32,
        metric=ACCURACY,
        target=0.96,
        name="digits_mlp",
    )
