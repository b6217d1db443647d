"""Time of a gradient trial: the trial engine beside the plain eager loop, batch size by batch size.

Both pass over the same samples from the same trained weights, in one process, in alternating
rounds; a row gives the medians over the rounds and their ratio. The eager loop uses all threads;
it is timed over a stretch of steps and extrapolated to the pass. The engine has as many trials
under way as there are threads, so that its time is that of all of them over their number. The
last rows give the whole trial, with everything that is measured on it, beside the sum of the
eager passes, and beside the time that the trial's arithmetic takes at the matrix-product rate
measured in the same rounds.

    python benchmarks/trials.py [--data-dir DIR] [--workload W] [--after B:LR:EPOCHS] [--rounds N]
"""

import argparse
import copy
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from math import ceil
from pathlib import Path
from statistics import median

import torch
from torch import nn
from torch.nn import functional as F

from batchlab.engine import mlp, passes
from batchlab.engine.data import load
from batchlab.engine.draws import trial_draw
from batchlab.engine.measure import Measure
from batchlab.engine.products import product
from batchlab.engine.train import initial_model, train
from batchlab.spec import Cadence, Phase, TrialsSpec
from batchlab.workloads import workload

STRETCH_S = 0.25  # of eager steps
RATE_SIZE = 1024  # rows and columns of the product that gives the rate


def eager(model: nn.Module, x: torch.Tensor, y: torch.Tensor, size: int, rate: float) -> float:
    """Seconds a pass would take, from a stretch of its steps."""
    model = copy.deepcopy(model)
    parameters = list(model.parameters())
    total = torch.zeros_like(parameters[-2])
    steps = ceil(len(y) / size)
    done, began = 0, time.perf_counter()
    while done < 2 or (done < steps and time.perf_counter() - began < STRETCH_S):
        rows = slice(done % steps * size, done % steps * size + size)
        gradients = torch.autograd.grad(F.cross_entropy(model(x[rows]), y[rows]), parameters)
        total += gradients[-2]
        with torch.no_grad():
            for p, g in zip(parameters, gradients, strict=True):
                p.sub_(g, alpha=rate)
        done += 1
    return (time.perf_counter() - began) / done * steps


def together(pool: ThreadPoolExecutor, works: Sequence[Callable[[], object]]) -> float:
    """Seconds each takes when all go on at once."""
    began = time.perf_counter()
    for future in [pool.submit(work) for work in works]:
        future.result()
    return (time.perf_counter() - began) / len(works)


def multiply(a: torch.Tensor, b: torch.Tensor) -> None:
    for _ in range(8):
        product(a, b)


def gigaflops(spec: TrialsSpec, model: nn.Module) -> float:
    """The least arithmetic of a trial, all batch sizes: what must be multiplied out anew.

    For every sample of every pass that takes more than one step, the hidden layers' products
    forward and backward, and the earlier updates' part in the first layer's output, on average
    over half of the pass; 2 flops each.
    """
    shapes = [m.weight.shape for m in model.modules() if isinstance(m, nn.Linear)]
    between = sum(o * i for o, i in shapes[1:-1])
    flops = 2 * (2 * between + shapes[0][0] * spec.samples / 2)
    stepping = sum(size < spec.samples for size in spec.batch_sizes)
    return stepping * spec.samples * flops / 1e9


def main() -> None:
    """Print one row a batch size, and the whole."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--workload", default="mnist")
    parser.add_argument("--after", default="1024:0.01:2")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    threads = torch.get_num_threads()
    protocol = workload(given.workload).protocol
    start = protocol.spec([Phase.parse(given.after)], 0, Cadence(every=1000))
    data = load(given.workload, given.data_dir, "cpu", "float32")
    model = initial_model(start, data)
    model.load_state_dict(train(start, data).group("model"))
    spec = TrialsSpec(
        start=start,
        batch_sizes=protocol.trial_batch_sizes,
        samples=protocol.trial_samples,
        draws=threads,
        learning_rate=protocol.learning_rate,
    )
    layers = mlp.linear_layers(model)
    assert layers is not None
    names = [name for name, p in model.named_parameters() if p.ndim >= 2]
    measure = Measure(spec, layers, names, data, None)
    rows = [trial_draw(0, draw, 0, spec.samples, len(data.train_x)) for draw in range(threads)]
    walkers = [
        passes.Walker(layers, data.train_x[r][None], data.train_y[r][None], deep=False)
        for r in rows
    ]
    squares = [torch.randn(1, RATE_SIZE, RATE_SIZE) for _ in range(2)]
    sizes = spec.batch_sizes
    loop: dict[int, list[float]] = {size: [] for size in sizes}
    here: dict[int, list[float]] = {size: [] for size in sizes}
    whole, rates = [], []
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    with torch.no_grad():
        walkers[0].walk(1, spec.learning_rate)  # compiles
    for _ in range(given.rounds):
        for size in sizes:
            loop[size].append(
                eager(
                    model,
                    data.train_x[rows[0]],
                    data.train_y[rows[0]],
                    size,
                    protocol.learning_rate,
                )
            )
            walks = [partial(one.walk, size, protocol.learning_rate) for one in walkers]
            here[size].append(together(pool, walks))
        whole.append(together(pool, [partial(measure, [(d, 0)]) for d in range(threads)]))
        taken = together(pool, [partial(multiply, *squares)] * threads)
        rates.append(8 * 2 * RATE_SIZE**3 / 1e9 / taken)
    print(f"torch {torch.__version__}, {threads} threads, {given.workload} after {given.after}")
    print(f"ms a pass of {spec.samples} samples, medians of {given.rounds} alternating rounds")
    print(f"{'B':>6}{'eager':>10}{'batchlab':>10}{'ratio':>8}{'  ratio by round':17}")
    for size in sizes:
        ratios = [a / b for a, b in zip(loop[size], here[size], strict=True)]
        print(
            f"{size:6}{median(loop[size]) * 1e3:10.1f}{median(here[size]) * 1e3:10.1f}"
            f"{median(ratios):8.1f}  {min(ratios):.1f} to {max(ratios):.1f}"
        )
    totals = [sum(loop[size][n] for size in sizes) for n in range(given.rounds)]
    ratios = [a / b for a, b in zip(totals, whole, strict=True)]
    print(
        f"{'trial':>6}{median(totals) * 1e3:10.1f}{median(whole) * 1e3:10.1f}"
        f"{median(ratios):8.1f}  {min(ratios):.1f} to {max(ratios):.1f}"
    )
    work = gigaflops(spec, model)
    floors = [work / rate for rate in rates]
    over = median(w / f for w, f in zip(whole, floors, strict=True))
    print(
        f"floor: {work:.1f} GFLOP a trial at {median(rates):.0f} GFLOP/s is "
        f"{median(floors) * 1e3:.0f} ms; a trial takes {over:.1f} times that"
    )


if __name__ == "__main__":
    main()
