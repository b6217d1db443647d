"""Time of one SGD step: the in-place step beside autograd with torch.optim.SGD.

Both train the same perceptron on the same random batches in one process, in alternating
stretches; a row gives the medians over the stretches and their ratio.

    python benchmarks/step.py [--threads N] [--stretches N]
"""

import argparse
import time
from statistics import median

import torch

from batchlab.engine.draws import generator
from batchlab.engine.mlp import linear_layers
from batchlab.engine.step import Autograd, InPlaceSGD, Stepper
from batchlab.spec import Model, Phase
from batchlab.workloads.mlp import build

SHAPES = {"digits": (64, (256, 256)), "mnist": (784, (1024, 1024))}
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024)
RATE = 0.01
STRETCH_S = 0.2


def steppers(inputs: int, hidden: tuple[int, ...], size: int) -> tuple[Stepper, Stepper]:
    """The in-place stepper and the autograd one, each on a model of its own."""
    models = [build(Model(hidden=hidden), inputs, 10, generator(0, "init")) for _ in range(2)]
    layers = linear_layers(models[0])
    assert layers is not None
    phase = Phase(batch_size=size, learning_rate=RATE, steps=1)
    return InPlaceSGD(layers, RATE), Autograd(models[1], phase)


def seconds_a_step(one: Stepper, x_BI: torch.Tensor, y_B: torch.Tensor, steps: int) -> float:
    """Mean time of a step over a stretch of so many."""
    began = time.perf_counter()
    for _ in range(steps):
        one.step(x_BI, y_B)
    spent = time.perf_counter() - began
    one.first_diverged()
    return spent / steps


def main() -> None:
    """Print one row for every shape and batch size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--stretches", type=int, default=7)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(f"torch {torch.__version__}, {given.threads} threads, ms a step, medians")
    print(f"{'shape':8}{'B':>6}{'autograd':>10}{'in place':>10}{'ratio':>7}")
    for name, (inputs, hidden) in SHAPES.items():
        for size in SIZES:
            g = torch.Generator().manual_seed(0)
            x_BI, y_B = (
                torch.randn(size, inputs, generator=g),
                torch.randint(10, (size,), generator=g),
            )
            fast, plain = steppers(inputs, hidden, size)
            steps = max(2, int(STRETCH_S / seconds_a_step(plain, x_BI, y_B, 3)))
            times: dict[str, list[float]] = {"fast": [], "plain": []}
            for _ in range(given.stretches):
                times["plain"].append(seconds_a_step(plain, x_BI, y_B, steps))
                times["fast"].append(seconds_a_step(fast, x_BI, y_B, steps))
            p, f = median(times["plain"]) * 1e3, median(times["fast"]) * 1e3
            print(f"{name:8}{size:6}{p:10.3f}{f:10.3f}{p / f:7.2f}", flush=True)


if __name__ == "__main__":
    main()
