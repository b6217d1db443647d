"""The noisy quadratic of `analysis.noisy_quadratic` as a workload: its steps follow theory.

Shapes: N samples, B of a batch, D directions.
"""

import torch
from torch import nn

from batchlab.analysis.noisy_quadratic import NoisyQuadratic
from batchlab.workloads.user import UserWorkload

DIRECTIONS, SAMPLES, SIZE, RATE = 30, 20_000, 32, 0.1
MODEL = NoisyQuadratic(DIRECTIONS)


class Quadratic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w_D = nn.Parameter(torch.randn(DIRECTIONS).sign())
        self.register_buffer("h_D", torch.tensor(MODEL.curvature_D, dtype=torch.float32))

    h_D: torch.Tensor


def loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Of gradient H w + noise of covariance H / B."""
    assert isinstance(model, Quadratic)
    slope_D = batch["noise_BD"].mean(0) * model.h_D.sqrt()
    return (model.h_D * model.w_D**2).sum() / 2 + (slope_D * model.w_D).sum()


def factory() -> UserWorkload:
    noise_ND = torch.randn(SAMPLES, DIRECTIONS, generator=torch.Generator().manual_seed(5))
    model = Quadratic()
    return UserWorkload(
        model=model,
        train={"noise_BD": noise_ND - noise_ND.mean(0)},
        validation={"noise_BD": torch.zeros(1, DIRECTIONS)},
        loss=loss,
        optimizer=torch.optim.SGD(model.parameters(), lr=RATE),
        batch_size=SIZE,
        name="quadratic",
    )


def broken() -> UserWorkload:
    raise ValueError("no such data")
