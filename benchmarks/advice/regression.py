"""Linear regression with heavy noise: nine tenths of the targets' variance cannot be explained.

A gradient's noise is then large from the first step, and so is the critical batch size.
Shapes: N samples, I inputs.
"""

import torch
from torch import nn
from torch.nn import functional as F

from batchlab import UserWorkload

TRAIN, VALIDATION, INPUTS = 16_384, 2_048, 32
NOISE = 3.0  # its standard deviation; the signal's is 1


def split(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    x_NI = torch.randn(count, INPUTS, generator=g) * torch.linspace(1.0, 0.2, INPUTS)
    y_N = x_NI @ torch.full((INPUTS,), 1.0)
    y_N = y_N / float((torch.linspace(1.0, 0.2, INPUTS) ** 2).sum() ** 0.5)
    return x_NI, y_N + NOISE * torch.randn(count, generator=g)


def mean_square(output_N1: torch.Tensor, y_N: torch.Tensor) -> torch.Tensor:
    return F.mse_loss(output_N1.squeeze(1), y_N)


def factory() -> UserWorkload:
    model = nn.Linear(INPUTS, 1)
    return UserWorkload(
        model=model,
        train=split(TRAIN, 0),
        validation=split(VALIDATION, 1),
        loss=mean_square,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01),
        batch_size=32,
        target=9.08,
        name="regression",
    )
