"""On a GPU: the resident kernel's steps, whether they are right and how long they take.

For the network of MNIST on data of its shape drawn at random; nothing is downloaded. `error`: for
each parameter after so many steps, how far it is from plain steps in float64, relative to how far
it has come; `plain`: the same of plain steps in float32. In both a unit near zero may fall on the
other side, from where on a run ends elsewhere: of `--draws` draws of the data, how many ended
within 1e-4 after 1,000 steps, either way. `equal`: whether another run of the same
steps, and one cut at other places, end in the same weights to the bit. Then microseconds a step in
stretches as in training, beside plain steps replayed from CUDA graphs: medians of `--rounds`, with
the smallest and the largest. Most of the time goes to compiling, once for each batch size and
number of warps; what `--seconds` leaves no time for is left out and said to be.

A kernel whose programs wait for each other may wait for ever if it is wrong, so that the process
ends itself after `--seconds` and half a minute more.

    timeout 100 python benchmarks/resident.py [--batch-sizes 2,1,4,8] [--rounds N] [--draws N]
                                               [--seconds S]
"""

import argparse
import faulthandler
import sys
import time
from statistics import median

import torch
from torch import nn

from batchlab.engine import mlp, resident, timing
from batchlab.engine.draws import generator
from batchlab.engine.lanes import Lanes
from batchlab.engine.recorder import Graphs
from batchlab.engine.replay import Replayed
from batchlab.engine.resident import ResidentSGD, division
from batchlab.engine.step import InPlaceSGD, Stepper
from batchlab.spec import Model, parse_sizes
from batchlab.workloads.mlp import build

MODEL, INPUTS, CLASSES, RATE = Model(hidden=(1024, 1024)), 784, 10, 0.01
STRETCH = ResidentSGD.stretch
GRACE_S = 30.0
Samples = tuple[torch.Tensor, torch.Tensor]


def fresh(device: torch.device) -> tuple[nn.Module, list[nn.Linear]]:
    """The network at its initial point, and its layers."""
    model = build(MODEL, INPUTS, CLASSES, generator(0, "init")).to(device)
    layers = mlp.linear_layers(model)
    assert layers is not None
    return model, layers


def drawn(count: int, device: torch.device, seed: int = 0) -> Samples:
    draws = torch.Generator(device).manual_seed(seed)
    x = torch.randn(count, INPUTS, generator=draws, device=device)
    return x, torch.randint(CLASSES, (count,), generator=draws, device=device)


def kept(layers: list[nn.Linear]) -> ResidentSGD:
    parts = division(layers)
    if parts is None:
        sys.exit("benchmarks/resident.py: the kernel is not for this GPU or this PyTorch")
    return ResidentSGD(layers, RATE, parts)


def resident_end(data: Samples, size: int, device: torch.device, piece: int) -> nn.Module:
    """The model after the data's steps, `piece` of them at a time."""
    model, layers = fresh(device)
    one = kept(layers)
    for x, y in zip(data[0].split(piece * size), data[1].split(piece * size), strict=True):
        one.steps(x, y, size)
    if one.first_diverged() is not None:
        print("   the loss is NOT FINITE")
    return model


def plain_end(data: Samples, size: int, device: torch.device, dtype: torch.dtype) -> nn.Module:
    model, layers = fresh(device)
    model.to(dtype)
    InPlaceSGD(layers, RATE).steps(data[0].to(dtype), data[1], size)
    return model


def errors(model: nn.Module, right: nn.Module, start: nn.Module) -> str:
    """Of each parameter."""
    each = zip(model.parameters(), right.parameters(), start.parameters(), strict=True)
    with torch.no_grad():
        ratios = [float((a.double() - b).norm() / (b - s.double()).norm()) for a, b, s in each]
    return " ".join(f"{ratio:.1e}" for ratio in ratios)


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def check(size: int, counts: tuple[int, ...], device: torch.device) -> None:
    """Print how far the steps are from the plain ones, and whether they are always the same."""
    start = fresh(device)[0]
    for count in counts:
        x, y = drawn(count * size, device)
        data = (x[: len(x) - size // 2], y[: len(y) - size // 2])  # the last batch is short
        model = resident_end(data, size, device, count)
        right = plain_end(data, size, device, torch.float64)
        plain = plain_end(data, size, device, torch.float32)
        again, cut = (resident_end(data, size, device, n) for n in (count, max(1, count // 3)))
        print(f"B={size} {count:5d} steps  error {errors(model, right, start)}")
        print(f"                 plain {errors(plain, right, start)}")
        answers = ("yes" if same(model, other) else "NO" for other in (again, cut))
        print("                 equal: run again {}, cut elsewhere {}".format(*answers), flush=True)


def often(size: int, draws: int, device: torch.device) -> None:
    """Print in how many runs no unit was rounded to the other side."""
    start, within = fresh(device)[0], [0, 0]
    for seed in range(draws):
        data = drawn(1000 * size, device, seed)
        right = plain_end(data, size, device, torch.float64)
        ends = resident_end(data, size, device, 1000), plain_end(data, size, device, torch.float32)
        for way, end in enumerate(ends):
            within[way] += max(map(float, errors(end, right, start).split())) < 1e-4
    print(f"B={size} within 1e-4 after 1000 steps: resident {within[0]}, plain {within[1]}", end="")
    print(f" of {draws}", flush=True)


def timed(one: Stepper, data: Samples, size: int, rounds: int, device: torch.device) -> str:
    """Microseconds a step."""

    def stretch() -> None:
        lanes.each([lambda: one.steps(*data, size)])
        one.first_diverged()

    lanes = Lanes(device, 1)
    stretch()  # warm, recorded
    spent = [timing.seconds(stretch, device) / STRETCH * 1e6 for _ in range(rounds)]
    return f"{median(spent):7.2f} us ({min(spent):.2f} to {max(spent):.2f})"


def main() -> None:
    began = time.perf_counter()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-sizes", default="2,1,4,8")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--draws", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=50.0, help="after which nothing is begun")
    given = parser.parse_args()
    faulthandler.dump_traceback_later(given.seconds + GRACE_S, exit=True)
    if not torch.cuda.is_available():
        sys.exit("benchmarks/resident.py: PyTorch sees no GPU here; there is nothing to measure")
    device = torch.device("cuda", torch.cuda.current_device())
    torch.set_float32_matmul_precision("highest")
    print(f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}", flush=True)
    sizes = list(parse_sizes(given.batch_sizes))
    warps = resident.WARPS
    plan = [(size, warps) for size in sizes] + [(size, 2 * warps) for size in sizes[:2]]
    for size, resident.WARPS in plan:
        if time.perf_counter() - began > given.seconds:
            print(f"B={size}, {resident.WARPS} warps: left out, --seconds are over")
            continue
        data = drawn(STRETCH * size, device)
        one = kept(fresh(device)[1])
        start = time.perf_counter()
        one.steps(data[0][: 4 * size], data[1][: 4 * size], size)
        timing.synchronize(device)
        compiled = time.perf_counter() - start
        print(f"B={size}, {resident.WARPS} warps: compiled in {compiled:.1f} s", flush=True)
        if warps == resident.WARPS:
            check(size, (1, 10, 100), device)
            often(size, given.draws, device)
        print(f"B={size} resident {timed(one, data, size, given.rounds, device)}", flush=True)
        if warps == resident.WARPS:
            graphs = Replayed(InPlaceSGD(fresh(device)[1], RATE), Graphs(device))
            print(f"B={size} graphs   {timed(graphs, data, size, given.rounds, device)}")
        print(f"   {time.perf_counter() - began:.1f} s since the start", flush=True)


if __name__ == "__main__":
    main()
