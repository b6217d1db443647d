"""What watching costs in a plain loop: each watch, every step and every tenth.

    OMP_NUM_THREADS=1 python benchmarks/probes.py [--seconds S] [--peers DIR]

Processor time of whole steps (zero_grad, forward, backward, watch, SGD), one thread, contenders in
turns. `--peers` is an environment made by `benchmarks/peers/setup.sh`: the peers' own table is of
the same perceptron, beside their own plain step.
"""

import argparse
import subprocess
from collections.abc import Callable
from pathlib import Path

import torch
from peers.costs import table
from peers.steps import batch, perceptron
from torch import Tensor, nn

from batchlab import Distance, GradientNorm, NoiseScale
from batchlab.integrations.base import Watch

PEERS = Path(__file__).parent / "peers" / "steps.py"
Watches = Callable[[nn.Module], list[Watch]]


def together(model: nn.Module, every: int) -> list[Watch]:
    noise = NoiseScale(model, every=every)
    return [noise, GradientNorm(model, every=every, of=noise), Distance(model, every=every)]


KINDS: dict[str, Watches] = {
    "plain": lambda _: [],
    "gradient norm": lambda m: [GradientNorm(m)],
    "distance": lambda m: [Distance(m)],
    "noise scale": lambda m: [NoiseScale(m)],
    "all three": lambda m: together(m, 1),
    "noise scale, every 10": lambda m: [NoiseScale(m, every=10)],
    "all three, every 10": lambda m: together(m, 10),
}


class Block(nn.Module):
    """A transformer's block with attention of its own linear layers."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            p.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for p in self.qkv(self.before(x)).chunk(3, 2)
        )
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        told: Tensor = x + self.down(nn.functional.gelu(self.up(self.after(x))))
        return told


class Transformer(nn.Module):
    """Two blocks of width 128 over 32 tokens, a class a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(16, 128)
        self.blocks, self.head = nn.Sequential(Block(128, 4), Block(128, 4)), nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        told: Tensor = self.head(self.blocks(self.embed(x)).mean(1))
        return told


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(1568, 10),
    )


def step(make: Callable[[], nn.Module], x: Tensor, y: Tensor, kind: Watches) -> Callable[[], None]:
    model = make()
    optimizer, loss = torch.optim.SGD(model.parameters(), lr=0.01), nn.CrossEntropyLoss()
    watches = kind(model)

    def run() -> None:
        optimizer.zero_grad()
        loss(model(x), y).backward()
        for watch in watches:
            watch.step()
        optimizer.step()

    return run


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each contender")
    parser.add_argument("--peers", type=Path, help="an environment of the peers' own")
    given = parser.parse_args()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    for size in (32, 128, 512):
        x, y = batch(size)
        steps = {name: step(perceptron, x, y, kind) for name, kind in KINDS.items()}
        table(f"MLP 784-256-256-10, B = {size}", steps, given.seconds)
    for title, make, shape in (
        ("CNN, two convolutions, 28 x 28, B = 64", convolutions, (64, 1, 28, 28)),
        ("transformer, 2 layers of 128, 32 tokens, B = 32", Transformer, (32, 32, 16)),
    ):
        x = torch.randn(shape, generator=generator)
        y = torch.randint(10, (shape[0],), generator=generator)
        steps = {name: step(make, x, y, kind) for name, kind in KINDS.items()}
        table(title, steps, given.seconds)
    if given.peers:
        subprocess.run([given.peers / "bin" / "python", PEERS, "--costs"], check=True)


if __name__ == "__main__":
    main()
