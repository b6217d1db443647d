"""Regression with heavy noise: nine tenths of the targets' variance cannot be explained.

A gradient's noise is then large from the first step, and so is the critical batch size. The model
is wide enough that large batches cost time: of a linear model the best size is always the largest.
Shapes: N samples, I inputs.
"""

import torch
from torch import nn
from torch.nn import functional as F

from batchlab import UserWorkload

TRAIN, VALIDATION, INPUTS, WIDTH = 16_384, 4_096, 64, 256
NOISE = 3.0  # its standard deviation; the signal's is about 1


def split(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    scale_I = torch.linspace(1.0, 0.2, INPUTS)
    x_NI = torch.randn(count, INPUTS, generator=g) * scale_I
    signal_N = 1.2 * torch.tanh(2 * x_NI.sum(dim=1) / float(scale_I.square().sum() ** 0.5))
    return x_NI, signal_N + NOISE * torch.randn(count, generator=g)


def mean_square(output_N1: torch.Tensor, y_N: torch.Tensor) -> torch.Tensor:
    return F.mse_loss(output_N1.squeeze(1), y_N)


def factory() -> UserWorkload:
    model = nn.Sequential(
        nn.Linear(INPUTS, WIDTH),
        nn.ReLU(),
        nn.Linear(WIDTH, WIDTH),
        nn.ReLU(),
        nn.Linear(WIDTH, 1),
    )
    return UserWorkload(
        model=model,
        train=split(TRAIN, 0),
        validation=split(VALIDATION, 1),
        loss=mean_square,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01),
        batch_size=32,
        target=9.3,
        name="regression",
    )
