"""How far single precision takes a gradient trial: the engine and the eager loop, on float32 data.

Both pass over the same samples from the same trained weights as the eager loop in float64. Where a
hidden unit lies so near zero that float32 rounds it to the other side, the passes part by more than
rounding; the table counts them. A row gives, of the norm of the last layer's summed gradient, how
many draws lie within 1e-4 of the float64 loop's, and the median and the largest of the relative
differences.

    python benchmarks/rounding.py [--data-dir DIR] [--workload W] [--after B:LR:EPOCHS]
                                  [--batch-sizes B,B,...] [--draws N]
"""

import argparse
import copy
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch
from torch import nn
from torch.nn import functional as F

from batchlab.engine import mlp, passes
from batchlab.engine.data import load
from batchlab.engine.draws import trial_draw
from batchlab.engine.train import initial_model, train
from batchlab.spec import Cadence, Phase
from batchlab.workloads import workload

NEAR = 1e-4


def eager(model: nn.Module, x: torch.Tensor, y: torch.Tensor, size: int, rate: float) -> float:
    """The norm of the sum of the last layer's gradients over a plain loop's steps."""
    model = copy.deepcopy(model)
    parameters = list(model.parameters())
    total = torch.zeros_like(parameters[-2])
    for start in range(0, len(y), size):
        rows = slice(start, start + size)
        gradients = torch.autograd.grad(F.cross_entropy(model(x[rows]), y[rows]), parameters)
        total += gradients[-2]
        with torch.no_grad():
            for p, g in zip(parameters, gradients, strict=True):
                p.sub_(g, alpha=rate)
    return float(total.norm())


def engine(
    layers: Sequence[nn.Linear], x: torch.Tensor, y: torch.Tensor, size: int, rate: float
) -> float:
    """The same by the trial engine."""
    with torch.no_grad():
        walker = passes.Walker(layers, x[None], y[None], deep=False)
        return float(walker.walk(size, rate).sum(-1, slice(None)).norm() / rate)


def main() -> None:
    """Print one row a batch size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--workload", default="mnist")
    parser.add_argument("--after", default="1024:0.01:2")
    parser.add_argument("--batch-sizes", default="1,2,3,4,5,6,7,8,16,32,64,128,256,512,1024")
    parser.add_argument("--draws", type=int, default=20)
    given = parser.parse_args()
    protocol = workload(given.workload).protocol
    rate, samples = protocol.learning_rate, protocol.trial_samples
    start = protocol.spec([Phase.parse(given.after)], 0, Cadence(every=1000))
    data = load(given.workload, given.data_dir, "cpu", "float32")
    model = initial_model(start, data)
    model.load_state_dict(train(start, data).group("model"))
    exact = copy.deepcopy(model).double()
    layers = mlp.linear_layers(model)
    assert layers is not None
    print(f"torch {torch.__version__}, {given.workload} after {given.after}, {given.draws} draws")
    print(
        f"{'B':>6}{'engine':>8}{'median':>10}{'largest':>10}{'eager':>8}{'median':>10}{'largest':>10}"
    )
    for size in map(int, given.batch_sizes.split(",")):
        ours, theirs = [], []
        for draw in range(given.draws):
            rows = trial_draw(0, draw, 0, samples, len(data.train_x))
            x, y = data.train_x[rows], data.train_y[rows]
            true = eager(exact, x.double(), y, size, rate)
            ours.append(abs(engine(layers, x, y, size, rate) / true - 1))
            theirs.append(abs(eager(model, x, y, size, rate) / true - 1))
        counted = [
            f"{sum(d <= NEAR for d in off):8}{median(off):10.1e}{max(off):10.1e}"
            for off in (ours, theirs)
        ]
        print(f"{size:6}{''.join(counted)}", flush=True)


if __name__ == "__main__":
    main()
