"""On a GPU: gradient trials by their history, checked and timed.

First the kernels beside PyTorch's products in double, and whole passes by both ways: the largest
relative difference of a trial's summed gradient of the last layer. Then what a history in single
precision changes against one in double: a pass in which no unit's sign changes is as good as the
same, and the others are counted. Then microseconds a step of one trial of the article's network,
many side by side, and the rate at which the history is read, counting the hidden layer's alone:
4 x 1,024 numbers for every sample before. `double`: with the history in double; `products`: by
PyTorch's products, where asked for. Above batch sizes of 32 a trial has weights of its own, and
there is one way. Last, with `--tune`, other tiles of the kernels, on 512 rows of history.

On MNIST's images where `--data-dir` has them, otherwise on random ones; the network at its initial
point.

    python benchmarks/trials_gpu.py [--data-dir DIR] [--replicas N,...] [--products N,...]
                                    [--batch-sizes N,...] [--tune]
"""

import argparse
import sys
import time
from functools import partial
from pathlib import Path

import torch
from torch import nn

from batchlab.engine import attend as attention
from batchlab.engine import mlp, timing
from batchlab.engine.attend import attend
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
ROWS = 512  # of history, for the tiles
TRIED = (
    (8, 4, {"ROWS": 32, "TILE": 64, "REPEATS": 2}, {"ROWS": 16, "TILE": 128}),
    (4, 4, {"ROWS": 32, "TILE": 64, "REPEATS": 2}, {"ROWS": 16, "TILE": 128}),
    (8, 4, {"ROWS": 16, "TILE": 64, "REPEATS": 4}, {"ROWS": 8, "TILE": 128}),
    (8, 4, {"ROWS": 32, "TILE": 64, "REPEATS": 1}, {"ROWS": 32, "TILE": 128}),
    (8, 8, {"ROWS": 32, "TILE": 128, "REPEATS": 2}, {"ROWS": 32, "TILE": 128}),
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


def kernels_beside_products() -> None:
    """The kernels alone."""
    g = torch.Generator("cuda").manual_seed(1)
    keys, values = (torch.randn(8, SAMPLES, WIDTH, generator=g, device="cuda") for _ in range(2))
    for size in (1, 2, 3, 8, 11):
        q = torch.randn(8, size, WIDTH, generator=g, device="cuda", dtype=torch.float64)
        for rows in (1, 77, 1000):
            ways = []
            for attention.TRITON in (True, False):
                out = torch.ones_like(q)
                attend(out, keys[:, :rows], values[:, :rows], q, 1.0)
                ways.append(out)
            off = float((ways[0] - ways[1]).abs().max() / ways[1].abs().max())
            print(f"attend, B {size}, {rows} rows: {off:.1e} {'' if off < 1e-12 else 'WRONG'}")
    attention.TRITON = True


def passes_beside(layers: list[nn.Linear], x: torch.Tensor, y: torch.Tensor) -> None:
    """Whole passes: by kernels, by products, and with a history in double."""
    for size in (1, 2, 8):
        sums = []
        for kernels, history in ((True, None), (False, None), (True, torch.float64)):
            attention.TRITON = kernels
            walker = Walker(layers, x, y, deep=False, history=history)
            sums.append(walker.walk(size, RATE).sum(-1, slice(None)).flatten(1))
        attention.TRITON = True
        here, products, exact = sums
        for name, other in (("products", products), ("a history in double", exact)):
            off = (here - other).norm(dim=1) / other.norm(dim=1)
            norm = (here.norm(dim=1) / other.norm(dim=1) - 1).abs()
            print(
                f"pass, B {size}, beside {name}: median {float(off.median()):.1e}, largest "
                f"{float(off.max()):.1e}, beyond 1e-6 {int((off > 1e-6).sum())} of {len(off)}; "
                f"norms beyond 1e-4 {int((norm > 1e-4).sum())}, largest {float(norm.max()):.1e}",
                flush=True,
            )


def table(
    layers: list[nn.Linear], x: torch.Tensor, y: torch.Tensor, sizes: list[int], products: bool
) -> None:
    """Microseconds a step of one trial, at every batch size."""
    replicas = len(x)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    walker = Walker(layers, x, y, deep=False)
    list(Sums(walker, SAMPLES, [len(layers) - 1]).of(max(sizes), RATE))
    walker.walk(SMALL, RATE)
    used = (torch.cuda.max_memory_allocated() - before) / replicas
    print(f"{replicas} trials, {used / 2**20:.0f} MiB each beside their samples")
    double = Walker(layers, x, y, deep=False, history=torch.float64)
    double.walk(SMALL, RATE)
    for size in sizes:
        spent = []
        ways = ((walker, True), (double, True), (walker, False))
        for one, attention.TRITON in ways[: 1 if size > SMALL else 2 + products]:
            seconds = timing.seconds(partial(one.walk, size, RATE), x.device)
            spent.append(seconds / replicas / len(range(0, SAMPLES, size)))
        attention.TRITON = True
        starts = range(0, SAMPLES, size)
        read = 4 * WIDTH * x.element_size() * sum(starts) / len(starts)
        cells = "".join(f"{1e6 * each:12.2f}" for each in spent)
        rate = f"{read / spent[0] / 1e9:10.0f} GB/s" if size <= SMALL else ""
        print(f"{replicas:6}{size:6}{cells}{rate}", flush=True)


def tune() -> None:
    """Other tiles: the rate at which each half reads its history."""
    from batchlab.engine import attend_kernels as own

    replicas = 200
    history = torch.randn(replicas, SAMPLES, WIDTH, device="cuda")[:, :ROWS]
    read = history.shape[0] * ROWS * WIDTH * 4
    for size in (1, 4, 8):
        q = torch.randn(replicas, size, WIDTH, device="cuda", dtype=torch.float64)
        out = torch.zeros_like(q)
        for own.MOST, own.WARPS, own.SCORES, mix in TRIED:
            own.MIX = {**mix, "SUMS": min(mix["ROWS"], own.WARPS)}
            weights = own.launch_scores(history, q, 0.0)
            own.launch_mix(out, weights, history)
            halves = (
                partial(own.launch_scores, history, q, 0.0),
                partial(own.launch_mix, out, weights, history),
            )
            rates = [read / timing.seconds(half, q.device, 10) / 1e9 for half in halves]
            print(
                f"B {size}, {own.MOST} queries, {own.WARPS} warps: scores {own.SCORES} "
                f"{rates[0]:.0f} GB/s, mix {mix} {rates[1]:.0f} GB/s",
                flush=True,
            )


def main() -> None:
    """Check, then time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--replicas", default="64,200,400")
    parser.add_argument("--products", default="200", help="of these, also by PyTorch's products")
    parser.add_argument("--batch-sizes", default="1,2,4,8,16,32,64,256")
    parser.add_argument("--tune", action="store_true")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("benchmarks/trials_gpu.py: PyTorch sees no GPU here; there is nothing to measure")
    began = time.perf_counter()
    kernels = attention.TRITON and attention.can_launch()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, kernels: {kernels}")
    if not kernels:
        sys.exit("benchmarks/trials_gpu.py: Triton builds no kernels here")
    model = build(workload("mnist").protocol.model, INPUTS, CLASSES, generator(0, "init")).cuda()
    layers = mlp.linear_layers(model)
    assert layers is not None
    replicas, products = parse_sizes(given.replicas), parse_sizes(given.products)
    x, y = drawn(given.data_dir, max(*replicas, CHECKED))
    with torch.no_grad():
        kernels_beside_products()
        passes_beside(layers, x[:CHECKED], y[:CHECKED])
        print(f"{time.perf_counter() - began:.0f} s so far")
        columns = ("us a step", "(double)", "(products)")
        print(f"{'trials':>6}{'B':>6}{''.join(f'{c:>12}' for c in columns)}{'history':>15}")
        for count in replicas:
            sizes = list(parse_sizes(given.batch_sizes))
            table(layers, x[:count], y[:count], sizes, count in products)
        print(f"{time.perf_counter() - began:.0f} s so far")
        if given.tune:
            tune()
    print(f"{time.perf_counter() - began:.0f} s in all")


if __name__ == "__main__":
    main()
