"""A tiny data set of Gaussian clusters, and specs on it: seconds of training for tests."""

from typing import Any

import torch

from batchlab.spec import Cadence, Model, Optimizer, Phase, TrainSpec
from batchlab.workloads.base import Data

SAMPLES, INPUTS, CLASSES = 50, 6, 3


def data(dtype: torch.dtype = torch.float32) -> Data:
    g = torch.Generator().manual_seed(0)
    centres = 2 * torch.randn(CLASSES, INPUTS, generator=g)

    def split(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        y = torch.randint(CLASSES, (count,), generator=g)
        return (centres[y] + torch.randn(count, INPUTS, generator=g)).to(dtype), y

    return Data(*split(SAMPLES), *split(20), CLASSES)


def phase(batch_size: int, rate: float = 0.05, *, optimizer: Any = None, **length: int) -> Phase:
    return Phase(
        batch_size=batch_size,
        learning_rate=rate,
        optimizer=optimizer or Optimizer(),
        **(length or {"epochs": 3}),
    )


def spec(*phases: Phase, seed: int = 0, **rest: Any) -> TrainSpec:
    given = {"cadence": Cadence(), **rest}
    return TrainSpec(
        workload="toy", model=Model(hidden=(16, 8)), schedule=phases, seed=seed, **given
    )
