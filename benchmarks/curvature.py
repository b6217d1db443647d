"""B_simple and B_noise along training, and e_max beside the learning rates used.

Digits: SGD at B = 8 and 128, rate 0.01, and Adam at B = 8, rate 0.001, with the protocol's network
and 30 epochs. MNIST: 784-1024-1024-10, SGD at B = 64, rate 0.1 (with BATCHLAB_DATA_DIR). At each
checkpoint ten draws of three chunks of the training set; 95% intervals over the draws.

- rate / e: the rate used over e_opt(B) of its batch size. Above 2, the next step raises the
  expected loss, to second order.
`loss` is that of the test data. `steps` tests the prediction: from checkpoints of digits, batches
of three sizes each take one step at multiples of e_opt(B), and the mean fall of the whole training
set's loss stands beside the predicted one, e_opt(B) G'DG / 2. `2 e_opt` should change nothing: its
fall is in units of the predicted one at e_opt. Adam's steps are its own, without momentum: their
metric has the batch's own square in it. What is not decided is not tested. `cost` times it.

    python benchmarks/curvature.py [digits|mnist|steps|cost] [--samples N]
"""

import argparse
import copy
import os
from collections.abc import Sequence
from itertools import pairwise
from math import isfinite
from pathlib import Path
from time import process_time

import torch
from torch import nn
from torch.nn import functional as F

from batchlab.analysis.curvature import Curvature, curvature
from batchlab.analysis.intervals import Interval, mean_interval
from batchlab.engine.curvature import measure
from batchlab.engine.draws import generator
from batchlab.engine.general import GeneralRun
from batchlab.engine.settings import Settings
from batchlab.probes.hessian import gradient, hessian_products
from batchlab.workloads.prepare import prepare
from batchlab.workloads.prepared import Prepared
from batchlab.workloads.target import load_target
from batchlab.workloads.user import UserWorkload

EPOCHS = {"digits": (0.2, 1.0, 3.0, 10.0, 30.0), "mnist": (0.01, 0.1, 0.5, 1.0)}
MULTIPLES = (0.25, 0.5, 0.71, 1.0, 1.41, 2.0, 4.0)
BATCHES = 100
BETA2 = 0.999
KINKS = 1e-3  # times G: long enough to meet kinks, too short for the third order
HEAD = (
    f"{'epoch':>6}{'steps':>7}{'loss':>9}  {'B_simple':<22}{'B_noise':<24}{'simple/noise':>13}"
    f"  {'e_max':<24}{'e_opt(B)':<24}{'rate / e':>9}{'cost':>7}"
)


def said(interval: Interval) -> str:
    return f"{interval.effect:.3g} [{interval.low:.3g}, {interval.high:.3g}]"


def row(run: GeneralRun, told: Curvature, loss: float, batch: int, rate: float, cost: float) -> str:
    epoch = run.place.samples / len(run.workload.train)
    noise, best = told.noise.scale, told.rate(batch)
    ratio = told.simple.scale.effect / noise.effect if noise.effect else float("inf")
    return (
        f"{epoch:6.2f}{run.place.step:7d}{loss:9.4f}  {said(told.simple.scale):<22}"
        f"{said(noise) + ('' if told.noise.decided else ' ?'):<24}{ratio:13.2f}"
        f"  {said(told.rate()):<24}{said(best):<24}{rate / best.effect:9.3f}{cost:7.1f}"
    )


def along(workload: Prepared, batch: int, rate: float, samples: int, name: str) -> None:
    """Checkpoints of one run; cost in gradients of the whole training set."""
    print(f"\n{workload.name}, {name}, B = {batch}, rate {rate:g}, {samples:,} samples\n{HEAD}")
    run = GeneralRun(workload, Settings(batch, learning_rate=rate))
    for epoch in EPOCHS[workload.name]:
        run.advance(max(1, round(epoch * len(workload.train) / batch)) - run.place.step)
        told = measure(run, samples)
        cost = told.gradients / len(workload.train)
        loss = run.evaluate().loss
        print(row(run, curvature(told.series), loss, batch, rate, cost), flush=True)


def with_adam(workload: Prepared) -> Prepared:
    given = workload.given
    model = given.model
    return prepare(
        UserWorkload(
            model=model,
            train=given.train,
            validation=given.validation,
            optimizer=torch.optim.Adam(model.parameters()),
            loss=given.loss,
            batch_size=given.batch_size,
            metric=given.metric,
            name=given.name,
        )
    )


def steps(workload: Prepared, rate: float, samples: int, name: str) -> None:
    """One step from a checkpoint: is e_opt(B) the best rate, and the fall as predicted?"""
    print(
        f"\n{name}, B = 8, rate {rate:g}\n"
        f"{'epoch':>6}{'batch':>7}  {'e_opt(B)':<26}{'predicted fall':>15}  "
        f"{'measured / predicted':<24}{'at 2 e_opt':<26}{'best multiple':>14}"
    )
    run = GeneralRun(workload, Settings(8, learning_rate=rate))
    x, y = workload.given.train
    for epoch in EPOCHS["digits"][:4]:
        run.advance(max(1, round(epoch * len(x) / 8)) - run.place.step)
        told = curvature(measure(run, samples, draws=20).series)
        print(f"{epoch:6.1f}  G'HG by differences over autograd's: {kinks(run, x, y):.2f}")
        for batch in (8, 64, 512):
            best = told.rate(batch)
            if not isfinite(best.high):
                print(f"{epoch:6.1f}{batch:7d}  can't tell", flush=True)
                continue
            predicted = best.effect * told.simple.square.effect / 2
            falls = fall(run, x, y, batch, [best.effect * m for m in MULTIPLES]) / predicted
            means = falls.mean(1).tolist()
            at_one, at_two = (mean_interval(falls[MULTIPLES.index(m)]) for m in (1.0, 2.0))
            multiple = MULTIPLES[means.index(max(means))]
            print(
                f"{epoch:6.1f}{batch:7d}  {said(best):<26}{predicted:15.2e}  "
                f"{said(at_one):<24}{said(at_two):<26}{multiple:14.2f}",
                flush=True,
            )


def kinks(run: GeneralRun, x: torch.Tensor, y: torch.Tensor) -> float:
    """What the kinks of the whole training set's loss add to G'HG, in double."""
    model = copy.deepcopy(run.model).double()
    parameters = list(model.parameters())

    def loss() -> torch.Tensor:
        return F.cross_entropy(model(x.double()), y)

    g = gradient(loss, parameters)
    (smooth,), _ = hessian_products(loss, parameters, [g])
    kept, sides = [p.detach().clone() for p in parameters], []
    for step in (KINKS, -KINKS):
        with torch.no_grad():
            for p, w, v in zip(parameters, kept, g, strict=True):
                p.copy_(w + step * v)
        moved = gradient(loss, parameters)
        sides.append(sum(float((a * b).sum()) for a, b in zip(moved, g, strict=True)))
    exact = sum(float((a * b).sum()) for a, b in zip(smooth, g, strict=True))
    return (sides[0] - sides[1]) / (2 * KINKS * exact)


@torch.no_grad()
def fall(
    run: GeneralRun, x: torch.Tensor, y: torch.Tensor, batch: int, rates: list[float]
) -> torch.Tensor:
    """Of the training loss, by rate and for each of so many random batches (rates, batches)."""
    kept = [p.detach().clone() for p in run.parameters]
    adam = isinstance(run.optimizer, torch.optim.Adam)
    before = F.cross_entropy(run.model(x), y)
    told = torch.zeros(len(rates), BATCHES)
    drawn = generator(1, "steps", batch)
    for column in range(BATCHES):
        rows = torch.randint(len(x), (batch,), generator=drawn)
        with torch.enable_grad():
            loss = F.cross_entropy(run.model(x[rows]), y[rows])
            gradients = torch.autograd.grad(loss, run.parameters)
        for place, rate in enumerate(rates):
            moves = adams(run, gradients) if adam else gradients
            for p, w, move in zip(run.parameters, kept, moves, strict=True):
                p.copy_(w - rate * move)
            told[place, column] = before - F.cross_entropy(run.model(x), y)
        for p, w in zip(run.parameters, kept, strict=True):
            p.copy_(w)
    return told


def adams(run: GeneralRun, gradients: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """What Adam multiplies by its rate at beta1 = 0: this batch's own square in the metric."""
    told = []
    for p, g in zip(run.parameters, gradients, strict=True):
        state = run.optimizer.state[p]
        square = BETA2 * state["exp_avg_sq"] + (1 - BETA2) * g**2
        told.append(g / ((square / (1 - BETA2 ** (state["step"] + 1))).sqrt() + 1e-8))
    return told


def cost() -> None:
    """Processor seconds of a measurement over those of as many plain gradients."""
    print(f"\n{'model':<28}{'chunk':>7}{'counted':>9}{'in time':>9}")
    for label, sizes, count in (
        ("64-256-256-10", (64, 256, 256, 10), 1440),
        ("784-1024-1024-10", (784, 1024, 1024, 10), 1440),
    ):
        torch.manual_seed(0)
        model = nn.Sequential(
            *(layer for i, o in pairwise(sizes) for layer in (nn.Linear(i, o), nn.ReLU()))
        )[:-1]
        x, y = torch.randn(count, sizes[0]), torch.randint(10, (count,))
        workload = prepare(
            UserWorkload(
                model=model,
                train=(x, y),
                validation=(x, y),
                optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
                loss=F.cross_entropy,
                batch_size=48,
            )
        )
        run = GeneralRun(workload)
        ratios, seconds = [], [0.0, 0.0]
        for _ in range(5):
            began = process_time()
            for part in range(0, count, 48):
                loss = F.cross_entropy(run.model(x[part : part + 48]), y[part : part + 48])
                torch.autograd.grad(loss, run.parameters)
            seconds[0] = process_time() - began
            began = process_time()
            told = measure(run, count)
            seconds[1] = process_time() - began
            ratios.append(seconds[1] / seconds[0])
        ratios.sort()
        print(f"{label:<28}{48:7d}{told.gradients / count:9.1f}{ratios[2]:9.1f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "what", choices=["digits", "mnist", "steps", "cost"], nargs="?", default="digits"
    )
    parser.add_argument("--samples", type=int, default=0, help="a checkpoint; default 5,760, 3,840")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.what == "cost":
        cost()
    elif given.what == "digits":
        workload = load_target("digits")
        samples = given.samples or 5760
        along(workload, 8, 0.01, samples, "SGD")
        along(workload, 128, 0.01, samples, "SGD")
        along(with_adam(workload), 8, 0.001, samples, "Adam")
    elif given.what == "steps":
        workload, samples = load_target("digits"), given.samples or 24_000
        steps(workload, 0.01, samples, "SGD")
        steps(with_adam(workload), 0.001, samples, "Adam")
    else:
        where = os.environ.get("BATCHLAB_DATA_DIR")
        workload = load_target("mnist", data_dir=Path(where) if where else None)
        along(workload, 64, 0.1, given.samples or 3840, "SGD")


if __name__ == "__main__":
    main()
