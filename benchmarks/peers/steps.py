"""One training step of each contender, in whichever environment has them.

`steps(batch)` gives name -> step; a peer is there where its package is. Every contender has its own
784-256-256-10 perceptron, plain SGD, the same data.
"""

import sys
import warnings
from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor, nn

Step = Callable[[], None]


def perceptron() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
    )


def batch(size: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(size)
    x = torch.randn(size, 784, generator=generator)
    return x, torch.randint(10, (size,), generator=generator)


def plain(size: int) -> Step:
    model, (x, y) = perceptron(), batch(size)
    optimizer, loss = torch.optim.SGD(model.parameters(), lr=0.01), nn.CrossEntropyLoss()

    def step() -> None:
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()

    return step


def backpack_norms(size: int) -> Step:
    """Squared per-example norms by BackPACK's BatchL2Grad, summed over the batch."""
    from backpack import backpack, extend
    from backpack.extensions import BatchL2Grad

    model, (x, y) = extend(perceptron()), batch(size)
    optimizer, loss = torch.optim.SGD(model.parameters(), lr=0.01), extend(nn.CrossEntropyLoss())

    def step() -> None:
        optimizer.zero_grad()
        with backpack(BatchL2Grad()):
            loss(model(x), y).backward()
        for p in model.parameters():
            p.batch_l2.sum()
        optimizer.step()

    return step


def cockpit(size: int, config: str) -> Step:
    """Cockpit's quantities every step; `config` is norms or one of its own configurations."""
    from backpack import extend
    from cockpit import Cockpit
    from cockpit.quantities import Distance, GradNorm, UpdateSize
    from cockpit.utils.configuration import configuration
    from cockpit.utils.schedules import linear

    every = linear(1)
    quantities = (
        [GradNorm(every), Distance(every), UpdateSize(every)]
        if config == "norms"
        else configuration(config, track_schedule=every)
    )
    model, (x, y) = extend(perceptron()), batch(size)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    loss, each = extend(nn.CrossEntropyLoss()), nn.CrossEntropyLoss(reduction="none")
    watched = Cockpit(model.parameters(), quantities=quantities)
    done = iter(range(10**9))

    def step() -> None:
        k = next(done)
        optimizer.zero_grad()
        z = model(x)
        mean = loss(z, y)
        with watched(
            k,
            info={
                "batch_size": size,
                "individual_losses": each(z, y),
                "loss": mean,
                "optimizer": optimizer,
            },
        ):
            mean.backward(create_graph=watched.create_graph(k))
        optimizer.step()

    return step


def steps(size: int) -> dict[str, Step]:
    """Every peer that this environment has, and the plain step."""
    told = {"plain": plain(size)}
    if find_spec("cockpit") and find_spec("backpack"):
        told["BackPACK, per-example norms"] = backpack_norms(size)
        told["Cockpit: norm, distance, update size"] = cockpit(size, "norms")
        told["Cockpit economy"] = cockpit(size, "economy")
    return told


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    if "--check" in sys.argv:
        for name, step in steps(8).items():
            step()
            print("runs:", name)
    elif "--costs" in sys.argv:
        from costs import table  # the script's own directory is on the path

        torch.set_num_threads(1)
        for size in (32, 128, 512):
            table(f"MLP 784-256-256-10, B = {size}", steps(size), seconds=4.0)
