"""What is measured does not depend on the device: against the CPU in double."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import batchlab
from batchlab.advice.advise import advise
from batchlab.engine.train import train
from batchlab.engine.trials import run_trials
from batchlab.record import Record, TrialRecord
from batchlab.spec import Optimizer, Phase, TrialsSpec
from tests import own, toy

CPU = torch.device("cpu")
STEPS, BATCH = 12, 8


def near(
    told: Sequence[Record] | Sequence[TrialRecord],
    right: Sequence[Record] | Sequence[TrialRecord],
    relative: float,
) -> None:
    assert [row[:-1] for row in told] == [row[:-1] for row in right]
    values = [row.value for row in right]
    assert [row.value for row in told] == pytest.approx(
        values, rel=relative, abs=1e-12, nan_ok=True
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("optimizer", [Optimizer(), Optimizer(name="adam")], ids=lambda o: o.name)
def test_trainings(optimizer: Optimizer, dtype: str, device: torch.device) -> None:
    def phases(size: int) -> tuple[Phase, ...]:
        return toy.phase(size, 0.01, optimizer=optimizer), toy.phase(3 * size, 0.01, epochs=1)

    for size in (1, 4):
        here = getattr(torch, dtype)
        mine = train(toy.spec(*phases(size), dtype=dtype), toy.data(here).to(device, here))
        right = train(toy.spec(*phases(size), dtype="float64"), toy.data(torch.float64))
        near(mine.records, right.records, 1e-3 if dtype == "float32" else 1e-9)


def test_trials(device: torch.device) -> None:
    start = train(toy.spec(toy.phase(10), dtype="float64"), toy.data(torch.float64))
    spec = TrialsSpec(
        start=toy.spec(toy.phase(10), dtype="float64"),
        batch_sizes=(1, 3, 8, 24),
        samples=24,
        draws=3,
        orders=2,
        learning_rate=0.05,
        detailed=1,
    )
    there = toy.data(torch.float64)
    right = run_trials(spec, start, there)
    mine = run_trials(spec, start, there.to(device, torch.float64))

    def name(row: TrialRecord) -> tuple[object, ...]:
        return row[:-1]

    near(sorted(mine.records, key=name), sorted(right.records, key=name), 1e-7)


def watched(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> list[float]:
    """What the watches say of a few steps."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    noise = batchlab.NoiseScale(model, optimizer)
    norm, distance = batchlab.GradientNorm(model), batchlab.Distance(model)
    for rows in torch.arange(STEPS * BATCH).split(BATCH):
        F.cross_entropy(model(x[rows]), y[rows]).backward()
        for watch in (noise, norm, distance):
            watch.step()
        optimizer.step()
        optimizer.zero_grad()
    told = noise.compute().estimate
    readings = norm.readings() + distance.readings()
    return [told.trace.effect, told.square.effect, *(r.value for r in readings)]


def test_watches(device: torch.device) -> None:
    def network() -> nn.Sequential:
        return own.mlp(nn.LayerNorm(8))

    x, y = own.tensors(STEPS * BATCH)
    mine = watched(network().to(device), x.to(device), y.to(device))
    right = watched(network().double(), x.double(), y)
    assert mine == pytest.approx(right, rel=1e-3)


def test_advice(device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchlab.advice.advise.MACHINE_S", 0.5)
    monkeypatch.setattr("batchlab.advice.advise.ROUNDS", 4)
    told = advise(
        own.workload(model=own.mlp().to(device), train=own.tensors(200)),
        budget=2000,
        verify=True,
        out=tmp_path,
    )
    assert told.machine.device == (torch.cuda.get_device_name() if device.type == "cuda" else "cpu")
    assert told.json()["tested"] in ("agreed", "disagreed", "undecided")
