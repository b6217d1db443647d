"""Replicas in lockstep: microseconds a step of one replica, alone and in stacks.

On the digits protocol's perceptron, one thread. `single` is what a run takes with no stacks at all:
the compiled loop, products in place, or autograd and PyTorch's optimizer. The ways take turns;
medians over the rounds, and the median of the rounds' ratios of `single` to the stack of `MOST`.
Times are of the processor (user and system), so that other work on the machine counts less.

    python benchmarks/lockstep.py [--rounds N] [--batch-sizes 2,8,24,32,64,128]
"""

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import nn

from batchlab.engine import mlp
from batchlab.engine.data import load
from batchlab.engine.replicas import Stacked
from batchlab.engine.step import stepper
from batchlab.engine.train import initial_model
from batchlab.lockstep import MOST as MOST_ON
from batchlab.spec import Cadence, Optimizer, Phase, parse_sizes
from batchlab.workloads import workload

MOST = MOST_ON["cpu"]
REPLICAS = (1, 2, MOST, 2 * MOST, 4 * MOST)
SAMPLES = 1280  # of a turn
OPTIMIZERS = {"sgd": Optimizer(), "adam": Optimizer(name="adam")}


def models(phase: Phase, count: int) -> list[nn.Module]:
    """So many seeds."""
    protocol, data = workload("digits").protocol, load("digits", None, "cpu", "float32")
    return [initial_model(protocol.spec([phase], seed, Cadence()), data) for seed in range(count)]


def ways(phase: Phase, x_NI: torch.Tensor, y_N: torch.Tensor) -> dict[str, Callable[[], float]]:
    """Processor seconds a replica of all steps, by each way."""
    size = phase.batch_size
    single = stepper(models(phase, 1)[0], phase)

    def alone() -> None:
        single.steps(x_NI, y_N, size)
        single.first_diverged()

    def together(count: int) -> Callable[[], None]:
        layers = [mlp.linear_layers(model) or [] for model in models(phase, count)]
        stack = Stacked(layers, [phase] * count)
        x_RNI, y_RN = x_NI.repeat(count, 1, 1), y_N.repeat(count, 1)

        def work() -> None:
            stack.steps(x_RNI, y_RN, size)
            stack.first_diverged()

        return work

    def timed(work: Callable[[], None], count: int) -> Callable[[], float]:
        def spent() -> float:
            began = time.process_time()
            work()
            return (time.process_time() - began) / count

        return spent

    return {"single": timed(alone, 1)} | {
        str(count): timed(together(count), count) for count in REPLICAS
    }


def main() -> None:
    """Print a row an optimizer and batch size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch-sizes", default="2,8,24,32,64,128")
    given = parser.parse_args()
    torch.set_num_threads(1)
    data = load("digits", None, "cpu", "float32")
    print(f"torch {torch.__version__}, one thread, us a step of a replica")
    columns = ("optimizer", "B", "single", *(f"R={count}" for count in REPLICAS), "ratio")
    print("".join(f"{name:>10}" for name in columns))
    for name, optimizer in OPTIMIZERS.items():
        for size in parse_sizes(given.batch_sizes):
            steps = SAMPLES // size
            phase = Phase(batch_size=size, learning_rate=0.01, epochs=1, optimizer=optimizer)
            x, y = data.train_x[: steps * size], data.train_y[: steps * size]
            contenders = ways(phase, x, y)
            for spent in contenders.values():
                spent()
            rounds = [
                {way: spent() for way, spent in contenders.items()} for _ in range(given.rounds)
            ]
            times = [f"{1e6 * median(r[way] for r in rounds) / steps:.0f}" for way in contenders]
            ratio = median(r["single"] / r[str(MOST)] for r in rounds)
            print("".join(f"{cell:>10}" for cell in (name, size, *times, f"{ratio:.2f}")))


if __name__ == "__main__":
    main()
