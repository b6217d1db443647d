"""One small training loop on fixed data, for every test that watches one."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from batchlab.integrations.base import Watch

Before = Callable[[nn.Module, torch.optim.Optimizer], list[Watch]]


def perceptron() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))


def data(batches: int = 12, size: int = 8) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    teacher = torch.randn(8, 3, generator=generator)
    x = torch.randn(batches, size, 8, generator=generator)
    return [(one, (one @ teacher).argmax(1)) for one in x]


def gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Of the mean loss, all parameters as one vector, in double."""
    loss = F.cross_entropy(model(x), y)
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


def train(
    before: Before,
    *,
    make: Callable[[], nn.Module] = perceptron,
    micro_batches: int = 1,
    batches: list[tuple[Tensor, Tensor]] | None = None,
    factor: float = 1.0,
) -> tuple[nn.Module, list[Watch]]:
    """Accumulate `micro_batches` a step, the loss divided by them and multiplied by `factor`."""
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1 / factor)
    watches = before(model, optimizer)
    for k, (x, y) in enumerate(data() if batches is None else batches):
        (F.cross_entropy(model(x), y) * (factor / micro_batches)).backward()
        if (k + 1) % micro_batches == 0:
            for watch in watches:
                watch.step()
            optimizer.step()
            optimizer.zero_grad()
    return model, watches
