"""On a GPU: gradient trials whose weights change a block of steps at a time, checked and timed.

First whole passes by the kernel beside the same by PyTorch's products, both in double: the largest
relative difference of a trial's summed gradient of the last layer. Then microseconds a step of one
trial of the article's network, many side by side, by both, and the rate at which the hidden layer's
weights would have to be read: 1,024 by 1,024 numbers once a step. Above batch sizes of 32 a trial
steps in single precision, and there is one way. Last, with `--tune`, other tiles of the kernel.

On MNIST's images where `--data-dir` has them, otherwise on random ones; the network at its initial
point.

    python benchmarks/trials_gpu.py [--data-dir DIR] [--replicas N,...] [--batch-sizes N,...]
                                    [--tune]
"""

import argparse
import sys
import time
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
from torch import nn

from batchlab.engine import blocked, launching, mlp, timing
from batchlab.engine.data import load
from batchlab.engine.draws import generator, trial_draw
from batchlab.engine.passes import SMALL, Walker
from batchlab.engine.sums import Sums
from batchlab.spec import parse_sizes
from batchlab.workloads import workload
from batchlab.workloads.mlp import build

INPUTS, CLASSES, WIDTH = 784, 10, 1024
RATE, SAMPLES = 0.01, 1024
CHECKED = 64  # trials whose passes are compared
# Inputs of a program and of a tile, warps, tiles under way:
TRIED = (
    (128, 4, 4, 1),
    (128, 4, 4, 2),
    (128, 4, 4, 3),
    (64, 4, 4, 3),
    (128, 8, 4, 1),
    (128, 2, 4, 3),
)


def drawn(folder: Path | None, replicas: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs (R, M, I) and classes (R, M) of so many trials."""
    if folder is None:
        g = torch.Generator("cuda").manual_seed(0)
        x = torch.rand(replicas, SAMPLES, INPUTS, generator=g, device="cuda")
        x *= torch.rand(x.shape, generator=g, device="cuda") < 0.2
        return x, torch.randint(CLASSES, (replicas, SAMPLES), generator=g, device="cuda")
    data = load("mnist", folder, "cuda", "float32")
    count = len(data.train_x)
    rows = torch.stack([trial_draw(0, draw, 0, SAMPLES, count) for draw in range(replicas)]).cuda()
    return data.train_x[rows], data.train_y[rows]


def by_kernels(*, on: bool) -> AbstractContextManager[object]:
    """Whether passes go by the kernels or by products."""
    return patch.object(blocked, "can_launch", lambda: on)


def passes_beside(layers: list[nn.Linear], x: torch.Tensor, y: torch.Tensor) -> None:
    """Whole passes by kernels beside products."""
    for size in (1, 2):
        sums = []
        for on in (True, False):
            with by_kernels(on=on):
                walker = Walker(layers, x, y, deep=False)
                sums.append(walker.walk(size, RATE).sum(-1, slice(None)).flatten(1))
        off = (sums[0] - sums[1]).norm(dim=1) / sums[1].norm(dim=1)
        print(
            f"pass, B {size}, beside products: median {float(off.median()):.1e}, largest "
            f"{float(off.max()):.1e}, beyond 1e-6 {int((off > 1e-6).sum())} of {len(off)}",
            flush=True,
        )


def table(layers: list[nn.Linear], x: torch.Tensor, y: torch.Tensor, sizes: list[int]) -> None:
    """Microseconds a step of one trial, at every batch size."""
    replicas = len(x)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    walker = Walker(layers, x, y, deep=False)
    list(Sums(walker).of(max(sizes), RATE))
    walker.walk(SMALL, RATE)
    used = (torch.cuda.max_memory_allocated() - before) / replicas
    print(f"{replicas} trials, {used / 2**20:.0f} MiB each beside their samples")
    for size in sizes:
        spent = []
        steps = len(range(0, SAMPLES, size))
        for on in (True, False) if size <= blocked.ONCE else (True,):
            with by_kernels(on=on):
                seconds = timing.seconds(partial(walker.walk, size, RATE), x.device)
            spent.append(seconds / replicas / steps)
        cells = "".join(f"{1e6 * each:12.2f}" for each in spent)
        rate = f"{8 * WIDTH**2 / spent[0] / 1e9:10.0f} GB/s" if size <= SMALL else ""
        print(f"{replicas:6}{size:6}{cells}{rate}", flush=True)


def tune() -> None:
    """Other tiles: microseconds of a step and trial."""
    from batchlab.engine import advance_kernel as kernel

    replicas = 200
    for size in (1, 2):
        g = torch.Generator("cuda").manual_seed(1)

        def normal(*of: int, g: torch.Generator = g) -> torch.Tensor:
            shape = (replicas, *of)
            return torch.randn(shape, generator=g, device="cuda", dtype=torch.float64)

        given = (
            normal(WIDTH, WIDTH),
            normal(size, WIDTH),
            normal(size, WIDTH).clamp_min(0.0),
            normal(size, WIDTH),
            normal(size, WIDTH),
            normal(size, size),
        )
        for kernel.CHUNK, kernel.ROWS, kernel.WARPS, kernel.STAGES[size] in TRIED:
            kernel.launch(*given)
            seconds = timing.seconds(partial(kernel.launch, *given), given[0].device, 10)
            print(
                f"B {size}, {kernel.CHUNK} inputs a program, {kernel.ROWS} a tile, {kernel.WARPS} "
                f"warps, {kernel.STAGES[size]} tiles under way: {1e6 * seconds / replicas:.2f} us",
                flush=True,
            )


def main() -> None:
    """Check, then time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--replicas", default="64,200,400")
    parser.add_argument("--batch-sizes", default="1,2,3,4,8,16,32,64,256,512")
    parser.add_argument("--tune", action="store_true")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("benchmarks/trials_gpu.py: PyTorch sees no GPU here; there is nothing to measure")
    began = time.perf_counter()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    if not launching.can_launch():
        sys.exit("benchmarks/trials_gpu.py: Triton builds no kernels here")
    model = build(workload("mnist").protocol.model, INPUTS, CLASSES, generator(0, "init")).cuda()
    layers = mlp.linear_layers(model)
    assert layers is not None
    replicas = parse_sizes(given.replicas)
    x, y = drawn(given.data_dir, max(*replicas, CHECKED))
    with torch.no_grad():
        passes_beside(layers, x[:CHECKED], y[:CHECKED])
        print(f"{time.perf_counter() - began:.0f} s so far")
        columns = ("us a step", "(products)")
        print(f"{'trials':>6}{'B':>6}{''.join(f'{c:>12}' for c in columns)}{'weights':>15}")
        for count in replicas:
            table(layers, x[:count], y[:count], list(parse_sizes(given.batch_sizes)))
        print(f"{time.perf_counter() - began:.0f} s so far")
        if given.tune:
            tune()
    print(f"{time.perf_counter() - began:.0f} s in all")


if __name__ == "__main__":
    main()
