"""On a GPU: steps a second replayed from CUDA graphs beside the same steps started one by one.

For the networks of MNIST and digits, on data of their shapes drawn at random (what a step costs a
GPU does not depend on the values); nothing is downloaded. The ways take turns; medians over the
rounds, and the median of the rounds' ratios with the smallest and largest. `equal`: whether the
weights after some hundred steps, a short batch among them, are the same to the bit. `first`:
seconds until the first recording is made, the warm-up included. `side by side`: by graphs, the
steps a second of so many runs together (`engine/lanes.py`) over those of one.

With `--data-dir` the article's whole suite on MNIST comes next: its plan and estimated time, then
the suite itself for as long as `--seconds` leaves, and how many of its runs that was. `--out` keeps
what was made, and the same command goes on from there.

    python benchmarks/gpu.py [--rounds N] [--batch-sizes 1,2,8,...] [--data-dir DIR] [--seeds N]
                              [--trials N] [--workers N] [--seconds S] [--out DIR]
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import nn

from batchlab.engine import mlp, timing
from batchlab.engine.draws import generator
from batchlab.engine.lanes import Lanes
from batchlab.engine.recorder import Graphs
from batchlab.engine.replay import Replayed
from batchlab.engine.step import InPlaceSGD, Stepper, first_diverged, stepper
from batchlab.spec import Optimizer, Phase, parse_sizes
from batchlab.workloads import workload
from batchlab.workloads.mlp import build

INPUTS = {"mnist": 784, "digits": 64}
CLASSES = 10
STRETCH = 64  # steps between two looks at whether a loss is finite, as in training
TURN_S = 0.1
ABREAST = 5  # runs side by side
OPTIMIZERS = {
    "sgd": Optimizer(),
    "momentum": Optimizer(momentum=0.9),
    "adam": Optimizer(name="adam"),
}
GRACE_S = 30.0  # for the suite to keep what is under way
COLUMNS = (
    "network",
    "optimizer",
    "B",
    "one by one",
    "graphs",
    "ratio",
    "equal",
    "first",
    "side by side",
)


def fresh(name: str, device: torch.device) -> nn.Module:
    """The protocol's network at its initial point."""
    model = workload(name).protocol.model
    return build(model, INPUTS[name], CLASSES, generator(0, "init")).to(device)


def recordable(model: nn.Module, phase: Phase) -> Stepper:
    """The stepper, or what takes its place where it is the resident kernel (`resident.py`)."""
    one, layers = stepper(model, phase), mlp.linear_layers(model)
    if one.recordable or layers is None:
        return one
    return InPlaceSGD(layers, phase.learning_rate)


def row(name: str, optimizer: str, size: int, rounds: int, device: torch.device) -> str:
    """Both ways at one batch size."""
    draws = torch.Generator(device).manual_seed(0)
    samples = STRETCH * size
    x = torch.randn(samples, INPUTS[name], generator=draws, device=device)
    y = torch.randint(CLASSES, (samples,), generator=draws, device=device)
    phase = Phase(batch_size=size, learning_rate=1e-3, steps=1, optimizer=OPTIMIZERS[optimizer])

    def stretch(ones: list[Stepper], count: int = samples) -> Callable[[], object]:
        lanes = Lanes(device, len(ones))

        def work() -> None:
            lanes.each([partial(one.steps, x[:count], y[:count], size) for one in ones])
            first_diverged([one.signs() for one in ones])

        return work

    models = [fresh(name, device) for _ in range(1 + ABREAST)]
    plain, *under = (recordable(model, phase) for model in models)
    graphs: list[Stepper] = [Replayed(one, Graphs(device)) for one in under]
    began = time.perf_counter()
    stretch(graphs[:1])()
    timing.synchronize(device)
    first = time.perf_counter() - began
    stretch([plain])()
    for one in (plain, graphs[0]):
        stretch([one], samples - size // 2)()
    pairs = zip(models[0].parameters(), models[1].parameters(), strict=True)
    equal = all(torch.equal(a, b) for a, b in pairs)
    ways = [stretch([plain]), stretch(graphs[:1]), stretch(graphs)]
    ways[-1]()
    times = max(1, round(TURN_S / timing.seconds(ways[0], device)))
    spent = [[timing.seconds(way, device, times) / STRETCH for way in ways] for _ in range(rounds)]
    ratios = [one / by_graphs for one, by_graphs, _ in spent]
    abreast = [ABREAST * one / all_ for _, one, all_ in spent]
    speeds = [f"{1 / median(column):.0f}" for column in list(zip(*spent, strict=True))[:2]]
    cells = (
        name,
        optimizer,
        str(size),
        *speeds,
        f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
        "yes" if equal else "NO",
        f"{first:.2f} s",
        f"{ABREAST}: {median(abreast):.2f}",
    )
    return line(cells)


def line(cells: tuple[str, ...]) -> str:
    """Of the table."""
    return "".join(f"{cell:>{24 if at == 5 else 13}}" for at, cell in enumerate(cells))


def suite(given: argparse.Namespace, began: float) -> None:
    """The plan, and as much of the suite as there is time for."""
    with tempfile.TemporaryDirectory() as gone:
        out: Path = given.out or Path(gone)
        command = [sys.executable, "-m", "batchlab"]
        words = ["reproduce", "--workload", "mnist", "--data-dir", str(given.data_dir)]
        words += ["--seeds", str(given.seeds), "--trials", str(given.trials), "--out", str(out)]
        words += ["--device", "cuda", "--workers", str(given.workers)]
        subprocess.run([*command, *words, "--dry-run"], check=True)
        left = given.seconds - GRACE_S - (time.perf_counter() - began)
        if left <= 0:
            print(f"the suite is left out: --seconds {given.seconds:.0f} are over")
            return
        start = time.perf_counter()
        child = subprocess.Popen([*command, *words, "--json"], stdout=subprocess.DEVNULL)
        try:
            status = child.wait(left)
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGINT)
            status = child.wait()
        spent = time.perf_counter() - start
        listed = [*command, "runs", "--store", str(out / "store"), "--json"]
        rows = json.loads(subprocess.run(listed, check=True, capture_output=True).stdout)
        how = "to the report" if status == 0 else f"stopped (status {status})"
        print(f"suite: {len(rows)} runs in {spent:.1f} s, {how}", flush=True)


def main() -> None:
    """Print the table, then the suite's part."""
    began = time.perf_counter()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-sizes", default="1,2,8,32,64,128,256,1024,4096")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=540.0, help="of all of it")
    parser.add_argument("--out", type=Path, help="keep what the suite makes here")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("benchmarks/gpu.py: PyTorch sees no GPU here; there is nothing to measure")
    device = torch.device("cuda", torch.cuda.current_device())
    print(f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}, steps a second")
    print(line(COLUMNS), flush=True)
    for name in INPUTS:
        for optimizer in OPTIMIZERS:
            for size in parse_sizes(given.batch_sizes):
                print(row(name, optimizer, size, given.rounds, device), flush=True)
    if given.data_dir is None:
        print("the suite is left out: it wants --data-dir with MNIST's files")
        return
    suite(given, began)


if __name__ == "__main__":
    main()
