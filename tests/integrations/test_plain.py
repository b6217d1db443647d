"""Watches in a plain loop: the truth of each step, nothing changed, nothing left."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_

from batchlab import Distance, GradientNorm, NoiseScale
from batchlab.integrations.base import Watch
from batchlab.probes.displacement import Displacement
from batchlab.probes.norms import Norms
from batchlab.record import ALL
from batchlab.spec import UserError
from tests.integrations.loops import data, gradient, perceptron, train


def oracle(micro_batches: int, unit: int) -> tuple[list[float], list[float]]:
    """tau and |G|^2 of each step of `train`, from gradients of parts of `unit` examples."""
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    taus, squares = [], []
    batches = data()
    for k in range(0, len(batches), micro_batches):
        x, y = (torch.cat(v) for v in zip(*batches[k : k + micro_batches], strict=True))
        own = torch.stack(
            [gradient(model, *p) for p in zip(x.split(unit), y.split(unit), strict=True)]
        )
        n = len(own)
        own = own.double()
        tau = unit * float(torch.cov(own.T).trace())
        taus.append(tau)
        squares.append(float(own.mean(0).square().sum()) - tau / (unit * n))
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    return taus, squares


def deep() -> nn.Module:
    """A shared layer: no per-example norms."""
    torch.manual_seed(0)
    shared = nn.Linear(8, 8)
    return nn.Sequential(shared, nn.Tanh(), shared, nn.Linear(8, 3))


def normed() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))


def assert_estimates(watch: Watch, taus: list[float], squares: list[float]) -> None:
    assert isinstance(watch, NoiseScale)
    told = watch.compute().estimate
    assert told.steps == len(taus)
    assert told.trace.effect == pytest.approx(np.mean(taus), rel=1e-4)
    assert told.square.effect == pytest.approx(np.mean(squares), rel=1e-3)


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_per_example_against_each_steps_own_gradients(micro_batches: int) -> None:
    _, (watch,) = train(lambda m, o: [NoiseScale(m, o)], micro_batches=micro_batches)
    assert_estimates(watch, *oracle(micro_batches, unit=1))
    with pytest.raises(AssertionError):  # the negative control: parts that these are not
        assert_estimates(watch, *oracle(micro_batches, unit=4))


def test_micro_batches_are_recognised() -> None:
    class Whole(nn.Module):
        """Hooks on modules can't see the parameter of this one."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = perceptron()
            self.scale = nn.Parameter(torch.ones(()))
            self.scale.requires_grad_(False)
            self.unseen = nn.ParameterList([])

        def forward(self, x: Tensor) -> Tensor:
            told: Tensor = self.inner(x) * self.scale
            return told

    from batchlab.integrations.sources import MicroBatches

    def before(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Watch]:
        watch = NoiseScale(model, optimizer)
        watch._source.remove()
        watch._source = MicroBatches(model)
        return [watch]

    _, (watch,) = train(before, make=Whole, micro_batches=3)
    assert_estimates(watch, *oracle(3, unit=8))


MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "per example": (perceptron, 1),
    "shared, micro-batches": (deep, 3),
    "batch norm, micro-batches": (normed, 3),
}


@pytest.mark.parametrize("case", MODELS)
@pytest.mark.parametrize("every", [1, 2])
def test_the_trajectory_is_the_same_to_the_bit_and_no_hook_stays(case: str, every: int) -> None:
    make, micro_batches = MODELS[case]
    plain, _ = train(lambda *_: [], make=make, micro_batches=micro_batches)
    watched, watches = train(
        lambda m, o: [
            NoiseScale(m, o, every=every),
            Distance(m, every=every),
            GradientNorm(m, every=every),
        ],
        make=make,
        micro_batches=micro_batches,
    )
    for a, b in zip(plain.state_dict().values(), watched.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert str(watches[0].compute())  # type: ignore[attr-defined]
    watches[0]._prepare(True)
    assert hooks(watched) > 0
    for watch in watches:
        watch.remove()
    assert hooks(watched) == 0


def hooks(model: nn.Module) -> int:
    on_modules = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    return on_modules + sum(len(p._backward_hooks or ()) for p in model.parameters())


def test_between_measured_steps_there_is_no_hook() -> None:
    model = perceptron()
    watch = NoiseScale(model, every=3)
    seen = []
    for x, y in data():
        seen.append(hooks(model))
        F.cross_entropy(model(x), y).backward()
        watch.step()
        model.zero_grad()
    assert seen == [2, 0, 0] * 4
    assert watch.compute().estimate.steps == 4


def test_a_scaled_loss_gives_the_same_noise_scale() -> None:
    _, (plain,) = train(lambda m, o: [NoiseScale(m, o)])
    _, (scaled,) = train(lambda m, o: [NoiseScale(m, o)], factor=1024.0)
    assert isinstance(plain, NoiseScale)
    assert isinstance(scaled, NoiseScale)
    a, b = plain.compute().estimate, scaled.compute().estimate
    assert b.scale.effect == pytest.approx(a.scale.effect, rel=1e-4)
    assert b.trace.effect == pytest.approx(a.trace.effect * 1024**2, rel=1e-4)


@pytest.mark.parametrize("when", ["before", "after unscale_", "after clipping"])
def test_a_grad_scaler_and_clipping_are_undone(when: str) -> None:
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = GradScaler("cpu", init_scale=1024.0, growth_interval=3)
    watch = NoiseScale(model, optimizer, scaler=scaler, clipped=when == "after clipping")
    for x, y in data():
        scaler.scale(F.cross_entropy(model(x), y)).backward()
        if when != "before":
            scaler.unscale_(optimizer)
        kept = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        if when == "after clipping":
            clip_grad_norm_(model.parameters(), 1e-3)
        watch.step()
        for p, g in zip(model.parameters(), kept, strict=True):
            p.grad = g  # go where the others go
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert scaler.get_scale() > 1024
    assert_estimates(watch, *oracle(1, unit=1))


def test_clipping_that_was_not_told_of_is_wrong() -> None:
    model = perceptron()
    watch = NoiseScale(model)
    x, y = data()[0]
    F.cross_entropy(model(x), y).backward()
    clip_grad_norm_(model.parameters(), 1e-3)
    watch.step()
    taus, squares = oracle(1, unit=1)
    with pytest.raises(AssertionError):
        assert_estimates(watch, taus[:1], squares[:1])


def test_bf16_autocast_is_near() -> None:
    model = perceptron()
    watch = NoiseScale(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for x, y in data():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = F.cross_entropy(model(x), y)
        loss.backward()
        watch.step()
        optimizer.step()
        optimizer.zero_grad()
    assert watch.compute().estimate.trace.effect == pytest.approx(
        float(np.mean(oracle(1, unit=1)[0])), rel=0.05
    )


def test_by_layer_adds_up_and_readings_have_the_interval() -> None:
    _, (layers, whole) = train(
        lambda m, o: [NoiseScale(m, o, by_layer=True), NoiseScale(m, o)], batches=data(60, 32)
    )
    assert isinstance(layers, NoiseScale)
    assert isinstance(whole, NoiseScale)
    told = layers.compute()
    assert set(told.layers) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert sum(one.trace.effect for one in told.layers.values()) == pytest.approx(
        whole.compute().estimate.trace.effect, rel=1e-5
    )
    readings = {r.name: r.value for r in whole.readings() if r.layer == ALL}
    low, scale, high = (readings[f"noise_scale{end}"] for end in ("_low", "", "_high"))
    assert low < scale < high
    assert "95% interval [" in str(whole.compute())
    assert whole.compute(last=2).estimate.steps == 2


def test_pure_noise_cannot_be_told() -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 1, bias=False)
    watch = NoiseScale(model)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        x = torch.randn(16, 4, generator=generator)
        sign = torch.randint(2, (16, 1), generator=generator) * 2 - 1
        (model(x) * sign).mean().backward()
        watch.step()
        model.zero_grad()
    told = watch.compute()
    assert not told.decided
    assert "can't tell" in str(told)
    names = {r.name for r in watch.readings()}
    assert "noise_scale_low" in names
    assert "noise_scale" not in names


def test_in_the_optimizers_metric() -> None:
    """Adam with one state for all is SGD: its metric is a multiple of the plain one."""
    model = perceptron()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.0)
    watch = NoiseScale(model, optimizer, metric="optimizer")
    plain = NoiseScale(model)
    plain._source.remove()
    from batchlab.integrations.sources import MicroBatches

    plain._source = MicroBatches(model)
    batches = data()
    for k, (x, y) in enumerate(batches):
        (F.cross_entropy(model(x), y) / 3).backward()
        if k % 3 == 2:
            watch.step()
            if k > 3:
                plain.step()
            else:
                plain._source.take("mean", True)
            optimizer.step()
            for state in optimizer.state.values():
                state["exp_avg_sq"].fill_(float(state["step"]) * 1e-3)
            optimizer.zero_grad()
    told = watch.compute()
    assert watch.skipped == 1  # the first step has no metric yet
    assert told.estimate.steps == 3
    assert "optimizer's metric" in str(told)
    # D differs between steps by a factor, so the sums weigh differently: compare one step each.
    ours, theirs = (w._statistics.compute()[ALL] for w in (watch, plain))
    assert ours.trace_S / ours.square_S == pytest.approx(theirs.trace_S / theirs.square_S, rel=1e-3)


def test_distance_and_gradient_norm_against_their_probes() -> None:
    begun = perceptron()
    after, (distance, norm) = train(lambda m, _: [Distance(m), GradientNorm(m)])
    assert isinstance(distance, Distance)
    assert isinstance(norm, GradientNorm)
    distance._look()  # of the weights as they are now
    probe = Displacement()
    for (name, w), w0 in zip(after.named_parameters(), begun.parameters(), strict=True):
        probe.update(name, w, w0)
    expected = {r.layer: r.value for r in probe.compute() if r.name == "distance"}
    told = {r.layer: r.value for r in distance.readings()}
    assert {k: told[k] for k in expected} == pytest.approx(expected, rel=1e-5)
    assert distance.compute().values[ALL][0] == 0
    x, y = data()[0]
    assert norm.compute().values[ALL][0] == pytest.approx(
        float(gradient(begun, x, y).norm()), rel=1e-5
    )
    assert "gradient_norm" in str(norm.compute())


@pytest.mark.parametrize(("every", "noise_every"), [(1, 1), (2, 1), (1, 2), (3, 2)])
@pytest.mark.parametrize("case", MODELS)
def test_a_norm_that_the_noise_scale_has_found_is_not_measured_again(
    case: str, every: int, noise_every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, micro_batches = MODELS[case]
    passes = 0

    def counted(measure: Callable[..., Any]) -> Callable[..., Any]:
        def call(*of: object) -> Any:
            nonlocal passes
            passes += 1
            return measure(*of)

        return call

    for name in ("of", "with_rows"):
        monkeypatch.setattr(Norms, name, counted(getattr(Norms, name)))

    def before(model: nn.Module, _: torch.optim.Optimizer) -> list[Watch]:
        noise = NoiseScale(model, every=noise_every)
        return [
            GradientNorm(model, of=noise),  # too early: it has nothing yet, or another step's
            noise,
            GradientNorm(model, every=every, of=noise),
            GradientNorm(make(), of=noise),  # of another model: of nothing
        ]

    batches = data()
    if case == "per example":  # one example alone has no noise scale
        batches[6] = (batches[6][0][:1], batches[6][1][:1])
    _, (alone, _, beside, other) = train(
        before, make=make, micro_batches=micro_batches, batches=batches
    )
    assert isinstance(alone, GradientNorm)
    assert isinstance(beside, GradientNorm)
    assert isinstance(other, GradientNorm)
    expected, told = alone.compute(), beside.compute()
    assert told.steps == expected.steps[::every]
    for name, values in told.values.items():
        assert np.array_equal(values, expected.values[name][::every])
    assert not other.compute().values[ALL].any()
    found = set(range(0, 12, noise_every)) - {6} if case == "per example" else set()
    assert passes == 2 * len(expected.steps) + len(found) + len(set(told.steps) - found)


def test_a_batch_of_one_example_is_left_out() -> None:
    batches = data()
    batches[5] = (batches[5][0][:1], batches[5][1][:1])
    _, (watch,) = train(lambda m, o: [NoiseScale(m, o)], batches=batches)
    assert isinstance(watch, NoiseScale)
    assert (watch.compute().estimate.steps, watch.skipped) == (11, 1)
    assert "1 steps left out" in str(watch.compute())


def test_what_only_a_pass_shows_falls_back_to_micro_batches() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            told: Tensor = self.head(self.inner(self.inner(x).tanh()))
            return told

    _, (watch,) = train(lambda m, o: [NoiseScale(m, o)], make=Twice, micro_batches=3)
    assert isinstance(watch, NoiseScale)
    assert "inner is called twice" in watch.told
    assert (watch.compute().estimate.steps, watch.skipped) == (3, 1)


def test_users_errors() -> None:
    model = perceptron()
    with pytest.raises(UserError, match="every=0"):
        NoiseScale(model, every=0)
    with pytest.raises(UserError, match="needs the optimizer"):
        NoiseScale(model, metric="optimizer")
    with pytest.raises(UserError, match="metric='adam': 'plain', or 'optimizer'"):
        NoiseScale(model, metric="adam")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="no metric is known of Rprop"):
        NoiseScale(model, torch.optim.Rprop(model.parameters()), metric="optimizer")
    with pytest.raises(UserError, match="'mean' or 'sum'"):
        NoiseScale(model, reduction="none")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="accumulate gradients over two") as said:
        train(lambda m, o: [NoiseScale(m, o)], make=normed)
    assert "batch norm" in str(said.value)
    assert "\n" not in str(said.value)
    with pytest.raises(ValueError, match="no step"):
        NoiseScale(model).compute()
    assert NoiseScale(model).readings() == []
