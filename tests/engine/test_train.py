"""The loop: schedules, measurements, interruptions, divergence."""

from itertools import pairwise
from math import ceil

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from batchlab.engine.draws import epoch_order
from batchlab.engine.state import RunState
from batchlab.engine.train import classify, initial_model, train
from batchlab.record import Record
from batchlab.spec import Cadence, Matmul, Optimizer, TrainSpec
from tests import toy

FULL = {"train_loss", "train_accuracy", "test_loss", "test_accuracy", "gradient_norm"}


def plain_loop(spec: TrainSpec, dtype: torch.dtype) -> torch.nn.Module:
    """What a reader would write: DataLoader order, autograd, torch.optim.SGD."""
    data = toy.data(dtype)
    model, epoch = initial_model(spec, data), 0
    for phase in spec.schedule:
        optimizer = torch.optim.SGD(model.parameters(), lr=phase.learning_rate)
        left = phase.step_count(toy.SAMPLES)
        while left:
            order = epoch_order(spec.seed, epoch, toy.SAMPLES)
            for batch in list(order.split(phase.batch_size))[:left]:
                loss = F.cross_entropy(model(data.train_x[batch]), data.train_y[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                left -= 1
            epoch += 1
    return model


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("float64", 1e-10)])
def test_against_the_plain_loop(dtype: str, tolerance: float) -> None:
    spec = toy.spec(toy.phase(7), toy.phase(3, steps=25), toy.phase(50, epochs=2))
    spec = spec.model_copy(update={"dtype": dtype})
    chosen = getattr(torch, dtype)
    end = train(spec, toy.data(chosen)).group("model")
    start = initial_model(spec, toy.data(chosen)).state_dict()
    plain = plain_loop(spec, chosen).state_dict()
    for name, value in plain.items():
        assert float((end[name] - value).norm() / (value - start[name]).norm()) < tolerance


def test_steps_epochs_and_samples() -> None:
    end = train(toy.spec(toy.phase(8, epochs=2), toy.phase(20, steps=4)), toy.data())
    assert end.status == "finished"
    assert end.position.step == 2 * ceil(50 / 8) + 4
    # 4 steps at 20: 20, 20, 10 (the short batch), then 20 of the next pass
    assert end.position.samples == 100 + 70
    ends = sorted({(r.step, r.epoch, r.samples) for r in end.records})
    assert ends == [(0, 0, 0), (7, 1, 50), (14, 2, 100), (17, 3, 150), (18, 3.4, 170)]


def test_measured_when_asked() -> None:
    cadence = Cadence(every=2, steps=(1, 3, 7, 1000))
    end = train(toy.spec(toy.phase(10, epochs=5), cadence=cadence), toy.data())
    at = {step: {r.name for r in end.records if r.step == step} for step in range(26)}
    for step in (0, 10, 20, 25):
        assert at[step] >= FULL
    for step in (1, 3, 7):
        assert at[step] == {"distance", "norm", "cosine"}
    assert all(not at[step] for step in range(26) if step not in (0, 1, 3, 7, 10, 20, 25))


def test_cadence_does_not_move_the_trajectory() -> None:
    often = train(toy.spec(toy.phase(6), cadence=Cadence(steps=tuple(range(1, 25)))), toy.data())
    seldom = train(toy.spec(toy.phase(6), cadence=Cadence(every=3)), toy.data())
    for name, value in often.tensors.items():
        assert torch.equal(value, seldom.tensors[name])


def test_the_initial_point() -> None:
    spec = toy.spec(toy.phase(10))
    start = {(r.name, r.layer): r.value for r in train(spec, toy.data()).records if r.step == 0}
    assert start["distance", "weights"] == start["distance", "biases"] == 0
    assert start["cosine", "weights"] == pytest.approx(1, abs=1e-12)
    data, model = toy.data(), initial_model(spec, toy.data())
    batch = epoch_order(0, 0, toy.SAMPLES)[:10]
    F.cross_entropy(model(data.train_x[batch]), data.train_y[batch]).backward()
    square = sum(float(p.grad.square().sum()) for p in model.parameters() if p.grad is not None)
    assert start["gradient_norm", "all"] == pytest.approx(square**0.5, rel=1e-5)


class Stop(Exception):
    """The tick's way to interrupt."""


def interrupted(spec: TrainSpec, after: int) -> RunState:
    """Train, interrupted after so many ticks again and again, each time through a checkpoint."""
    state: RunState | None = None
    kept: list[RunState] = []

    while True:
        left = after

        def tick(_: int) -> None:
            nonlocal left
            left -= 1
            if not left:
                raise Stop

        def save(now: RunState) -> None:
            tensors = {k: v.clone() for k, v in now.tensors.items()}
            kept.append(RunState.from_parts(tensors, now.meta()))

        try:
            return train(spec, toy.data(), start=state, tick=tick, save=save)
        except Stop:
            state = kept[-1]


@pytest.mark.parametrize("after", [1, 3])
@pytest.mark.parametrize(
    "optimizer", [Optimizer(), Optimizer(momentum=0.9), Optimizer(name="adam")], ids=str
)
def test_interrupted_is_uninterrupted_to_the_bit(optimizer: Optimizer, after: int) -> None:
    phases = (
        toy.phase(1, epochs=3, optimizer=optimizer),
        toy.phase(6, steps=13, optimizer=optimizer),
        toy.phase(50, epochs=4, optimizer=Optimizer()),
    )
    spec = toy.spec(*phases, cadence=Cadence.doubling(every=2))
    through, pieces = train(spec, toy.data()), interrupted(spec, after)
    assert pieces.records == through.records
    assert pieces.position == through.position
    assert pieces.tensors.keys() == through.tensors.keys()
    for name, value in through.tensors.items():
        assert torch.equal(value, pieces.tensors[name])


@pytest.mark.parametrize("size", [1, 3, 7, 40])
def test_when_a_run_is_measured_leaves_no_trace_in_it(size: int) -> None:
    """Measured in the middle of stretches that must not be cut, and hardly at all."""
    often = Cadence(every=1, steps=(1, 2, 3, 5, 11, 12, 40, 66, 100, 130))
    ends = {
        c: train(toy.spec(toy.phase(size, epochs=4), cadence=c), toy.data())
        for c in (often, Cadence(every=4))
    }
    one, other = ends.values()
    for name, value in one.tensors.items():
        assert torch.equal(value, other.tensors[name])
    steps = one.position.step
    assert {r.step for r in one.records} >= {s for s in often.steps if s <= steps}


def test_weights_within_a_stretch_are_those_of_the_run_that_ends_there() -> None:
    spec = toy.spec(toy.phase(1, epochs=4), cadence=Cadence(steps=(5, 37)), dtype="float64")
    whole = train(spec, toy.data(torch.float64))
    for step in (5, 37):
        end = train(spec.cut(step, toy.SAMPLES), toy.data(torch.float64))
        mine, theirs = (
            {(r.name, r.layer): r.value for r in run.records if r.step == step}
            for run in (whole, end)
        )
        assert {name for name, _ in mine} == {"distance", "norm", "cosine"}
        for key, value in mine.items():
            assert value == pytest.approx(theirs[key], rel=1e-12)


def test_other_seeds_are_other_runs() -> None:
    def losses(seed: int) -> list[Record]:
        return train(toy.spec(toy.phase(10), seed=seed), toy.data()).records

    assert losses(0) == losses(0)
    assert losses(0) != losses(1)


def test_momentum_outlives_a_change_of_rate() -> None:
    heavy = Optimizer(momentum=0.9)
    one = toy.spec(toy.phase(10, epochs=2, optimizer=heavy))
    two = toy.spec(*[toy.phase(10, epochs=1, optimizer=heavy)] * 2)
    a, b = (train(s, toy.data()) for s in (one, two))
    for name, value in a.tensors.items():
        assert torch.equal(value, b.tensors[name])


def test_divergence_is_a_result() -> None:
    end = train(toy.spec(toy.phase(10, rate=1e6, epochs=20)), toy.data())
    assert end.status == "diverged"
    assert 1 <= end.position.step < 100
    assert all(r.step < end.position.step for r in end.records)


def test_evaluation_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    data, model = toy.data(), initial_model(toy.spec(toy.phase(10)), toy.data())
    whole = classify(model, data.train_x, data.train_y, "train").compute()
    monkeypatch.setattr("batchlab.engine.train.EVALUATION_ROWS", 7)
    parts = classify(model, data.train_x, data.train_y, "train").compute()
    for a, b in zip(parts, whole, strict=True):
        assert a.value == pytest.approx(b.value, rel=1e-6)


@pytest.mark.parametrize(("matmul", "least", "most"), [("float32", 0, 1e-6), ("bf16", 1e-6, 0.02)])
def test_evaluation_is_the_models_output(matmul: Matmul, least: float, most: float) -> None:
    """A perceptron's by products of its own, at sizes that oneDNN takes; others' by themselves."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2200, 96, generator=generator), torch.arange(2200) % 10
    sizes = (96, 160, 160, 10)
    layers = [nn.Linear(a, b) for a, b in pairwise(sizes)]
    perceptron = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
    other = nn.Sequential(perceptron, nn.Identity())
    with torch.no_grad():
        for layer in layers:
            layer.weight.mul_(3)
        loss = float(F.cross_entropy(perceptron.double()(x.double()), y))
    for model in (perceptron.float(), other):
        told = {r.name: r.value for r in classify(model, x, y, "test", matmul).compute()}
        assert least <= abs(told["test_loss"] / loss - 1) <= most


def test_damaged_state() -> None:
    end = train(toy.spec(toy.phase(10)), toy.data())
    assert RunState.from_parts(end.tensors, end.meta()).records == end.records
    for field in ("position", "records", "status", "seconds"):
        with pytest.raises(ValueError, match="not the state of a run"):
            RunState.from_parts(end.tensors, {**end.meta(), field: "?"})
