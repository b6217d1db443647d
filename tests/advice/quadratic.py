"""The noisy quadratic model as a workload: its steps to a target are known for every batch size.

A sample is a point z, its loss sum_i h_i (x_i - z_i)^2 / 2 with z_i of variance 1 / h_i, so that
the gradient's covariance is H. The validation data are the mean of the training points, where the
loss is that over the minimum, and x begins a distance of 1 from it in every direction.

Shapes: N samples, D directions.
"""

import torch
from torch import nn

from batchlab.workloads.user import UserWorkload

DIRECTIONS, SAMPLES, TARGET = 64, 8192, 0.05


class Point(nn.Module):
    def __init__(self, start_D: torch.Tensor) -> None:
        super().__init__()
        self.x_D = nn.Parameter(start_D.clone())

    def forward(self, z_ND: torch.Tensor) -> torch.Tensor:
        return self.x_D - z_ND


def loss(off_ND: torch.Tensor, h_ND: torch.Tensor) -> torch.Tensor:
    return (h_ND * off_ND**2).sum(1).mean() / 2


def workload(batch_size: int = 4, rate: float = 0.1, seed: int = 0) -> UserWorkload:
    g = torch.Generator().manual_seed(seed)
    h_D = 1.0 / torch.arange(1, DIRECTIONS + 1)
    z_ND = torch.randn(SAMPLES, DIRECTIONS, generator=g) / h_D.sqrt()
    middle_D = z_ND.mean(0)
    model = Point(middle_D + 1)
    held_out_ND = middle_D.expand(4, -1).clone()
    return UserWorkload(
        model=model,
        train=(z_ND, h_D.expand(SAMPLES, -1).clone()),
        validation=(held_out_ND, h_D.expand(4, -1).clone()),
        optimizer=torch.optim.SGD(model.parameters(), lr=rate),
        loss=loss,
        batch_size=batch_size,
        target=TARGET,
        name="noisy quadratic",
    )
