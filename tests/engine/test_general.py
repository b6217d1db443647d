"""Runs of a user's workload: against a plain loop, to the bit when branched, hooks, evaluation."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from batchlab.engine.draws import epoch_order
from batchlab.engine.general import GeneralRun, Micro
from batchlab.engine.settings import Settings
from batchlab.spec import UserError
from batchlab.workloads.objective import Metric
from batchlab.workloads.prepare import prepare
from batchlab.workloads.prepared import Prepared
from batchlab.workloads.user import UserWorkload
from tests import own

Make = Callable[[nn.Module], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "momentum": lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01),
    "adam": lambda m: torch.optim.Adam(m.parameters(), lr=0.01),
}


def weights(run: GeneralRun) -> list[torch.Tensor]:
    return [v.detach().clone() for v in run.model.state_dict().values()]


def equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def words(**given: Any) -> Prepared:
    loader = DataLoader(own.Words(), batch_size=8, shuffle=True, collate_fn=own.padded)
    return own.prepared(
        model=own.Speaker(), train=loader, validation=loader, loss=None, metric=None, **given
    )


def heard(*, number: bool = False) -> Prepared:
    """Of half of the samples no word counts."""
    loader = DataLoader(own.Words(), batch_size=8, shuffle=True, collate_fn=own.masked)

    def weight(batch: Any) -> Any:
        told = (batch["labels"] >= 0).sum()
        return int(told) if number else told

    return own.prepared(
        model=own.Speaker(), train=loader, validation=loader, loss=None, metric=None, weight=weight
    )


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_the_same_steps_as_a_plain_loop(name: str) -> None:
    workload = own.prepared(optimizer=OPTIMIZERS[name])
    run = GeneralRun(workload, Settings(12, learning_rate=0.05), seed=7)
    assert run.advance(10) == 10
    model = own.mlp()
    optimizer = OPTIMIZERS[name](model)
    optimizer.param_groups[0]["lr"] = 0.05
    x, y = own.tensors()
    losses: list[torch.Tensor] = []
    for epoch in range(3):
        for rows in epoch_order(7, epoch, own.SAMPLES).split(12):  # the last one of 4
            if len(losses) == 10:
                break
            loss = F.cross_entropy(model(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach().double())
    assert equal(weights(run), list(model.state_dict().values()))
    assert torch.equal(run.losses(), torch.stack(losses))
    assert len(run.losses()) == 0
    assert (run.place.step, run.place.samples, run.place.epoch) == (10, 104, 2)
    assert run.advance(0) == 0


@pytest.mark.parametrize("name", list(OPTIMIZERS))
@pytest.mark.parametrize("layer", [nn.Identity(), nn.Dropout(0.4), nn.BatchNorm1d(8)])
def test_branching_is_never_having_stopped(name: str, layer: nn.Module) -> None:
    workload = own.prepared(layer, optimizer=OPTIMIZERS[name])
    whole = GeneralRun(workload, Settings(8), seed=3)
    whole.advance(17)
    cut = GeneralRun(workload, Settings(8), seed=3)
    cut.advance(7)
    snapshot = cut.snapshot()
    torch.rand(5)  # the global generator takes no part
    branch = GeneralRun(workload, start=snapshot)
    branch.advance(4)
    branch.advance(6)
    assert equal(weights(branch), weights(whole))
    assert branch.place == whole.place
    cut.advance(30)
    cut.restore(snapshot)  # the snapshot is not what the run goes on with
    cut.advance(10)
    assert equal(weights(cut), weights(whole))
    other = GeneralRun(workload, start=snapshot)
    other.restore(snapshot, seed=4)
    other.advance(10)
    assert not equal(weights(other), weights(whole))


def test_branching_where_items_are_random() -> None:
    workload = own.prepared(train=own.Rows(noise=0.2))
    whole = GeneralRun(workload, Settings(8))
    whole.advance(9)
    cut = GeneralRun(workload, Settings(8))
    cut.advance(4)
    branch = GeneralRun(workload, start=cut.snapshot())
    branch.advance(5)
    assert equal(weights(branch), weights(whole))


def test_random_training_leaves_the_global_generator_alone() -> None:
    run = GeneralRun(own.prepared(nn.Dropout(0.4)), Settings(8))
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    run.advance(2)
    assert torch.equal(torch.rand(2), expected)


def test_a_change_keeps_the_optimizers_state() -> None:
    workload = own.prepared(optimizer=OPTIMIZERS["adam"])
    run = GeneralRun(workload, Settings(8))
    run.advance(5)
    before = [s["exp_avg"].clone() for s in run.optimizer.state.values()]
    run.change(Settings(20, learning_rate=0.03, options={"beta2": 0.9}))
    after = [s["exp_avg"] for s in run.optimizer.state.values()]
    assert equal(before, after)
    assert run.optimizer.param_groups[0]["betas"] == (0.9, 0.9)
    assert run.optimizer.param_groups[0]["lr"] == 0.03
    assert run.advance(1) == 1
    assert (run.place.epoch, run.place.cursor, run.place.samples) == (1, 20, 60)
    run.change(Settings(8))  # None is the user's own
    assert run.optimizer.param_groups[0]["lr"] == 0.01
    assert run.optimizer.param_groups[0]["betas"] == (0.9, 0.999)


@pytest.mark.parametrize("micro", [1, 5, 8])
def test_accumulation_is_the_large_batch(micro: int) -> None:
    workload = own.prepared(optimizer=OPTIMIZERS["momentum"])
    large = GeneralRun(workload, Settings(16))
    parts = GeneralRun(workload, Settings(16, micro_batch=micro))
    large.advance(6)
    parts.advance(6)
    for a, b in zip(weights(large), weights(parts), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(large.losses(), parts.losses(), rtol=1e-5, atol=1e-6)


def test_accumulation_of_words_wants_their_weight() -> None:
    def grow(micro: int | None, **given: Any) -> list[torch.Tensor]:
        run = GeneralRun(words(**given), Settings(16, micro_batch=micro))
        run.advance(4)
        return weights(run)

    large = grow(None)
    weighted = grow(3, weight=lambda batch: (batch["labels"] >= 0).sum())
    for a, b in zip(large, weighted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    plain = grow(3)
    assert max(float((a - b).abs().max()) for a, b in zip(large, plain, strict=True)) > 1e-4


def test_hooks_see_the_gradients_and_change_nothing() -> None:
    workload = own.prepared()
    micros: list[Micro] = []
    joined: list[list[torch.Tensor]] = []

    def on_step(run: GeneralRun) -> None:
        joined.append([p.grad.clone() for p in run.parameters if p.grad is not None])

    settings = Settings(16, micro_batch=6)
    watched = GeneralRun(
        workload, settings, on_step=on_step, on_micro=lambda _, micro: micros.append(micro)
    )
    alone = GeneralRun(workload, settings)
    watched.advance(3)
    alone.advance(3)
    assert equal(weights(watched), weights(alone))
    assert [m.samples for m in micros] == [6, 6, 4, 6, 6, 4, 6, 2]
    model, x, y = own.mlp(), *own.tensors()
    rows = epoch_order(0, 0, own.SAMPLES)
    expected = torch.autograd.grad(
        F.cross_entropy(model(x[rows[6:12]]), y[rows[6:12]]), list(model.parameters())
    )
    told = [g for g in micros[1].gradients if g is not None]
    assert equal(told, list(expected))
    whole = torch.autograd.grad(
        F.cross_entropy(model(x[rows[:16]]), y[rows[:16]]), list(model.parameters())
    )
    for a, b in zip(joined[0], whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_the_users_own_clipping_is_between_the_probes_and_the_update() -> None:
    def clip(model: nn.Module) -> None:
        nn.utils.clip_grad_norm_(model.parameters(), 0.01)

    seen: list[float] = []

    def on_step(run: GeneralRun) -> None:
        seen.append(float(sum(p.grad.square().sum() for p in run.parameters if p.grad is not None)))

    run = GeneralRun(own.prepared(before_step=clip), Settings(8), on_step=on_step)
    before = weights(run)
    run.advance(1)
    moved = sum(float((a - b).square().sum()) for a, b in zip(before, weights(run), strict=True))
    assert moved**0.5 == pytest.approx(0.1 * 0.01, rel=1e-3)
    assert seen[0] ** 0.5 > 0.1


def test_a_micro_hook_is_called_without_accumulation_too() -> None:
    seen: list[int] = []
    run = GeneralRun(
        own.prepared(), Settings(8), on_micro=lambda _, micro: seen.append(micro.samples)
    )
    run.advance(2)
    assert seen == [8, 8]


def test_divergence_is_told_at_its_step() -> None:
    workload = own.prepared()

    def spoil(run: GeneralRun) -> None:
        if run.place.step == 36:
            for p in run.parameters:
                p.data.fill_(float("nan"))

    run = GeneralRun(workload, Settings(8), on_step=spoil)
    assert run.advance(100) == 38  # the step after it is the first whose loss is not finite
    assert run.status == "diverged"
    assert run.place.step == 38
    assert len(run.losses()) == 38
    assert run.advance(5) == 0
    sane = GeneralRun(workload, Settings(8))
    assert sane.advance(100) == 100
    assert sane.status == "running"


def test_no_sync_between_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    look = GeneralRun._look

    def counted(run: GeneralRun) -> None:
        looks.append(run.place.step)
        look(run)

    monkeypatch.setattr(GeneralRun, "_look", counted)
    GeneralRun(own.prepared(), Settings(8)).advance(70)
    assert looks == [32, 64, 70]


def test_evaluation_is_the_whole_split_in_eval_mode() -> None:
    workload = own.prepared(nn.Dropout(0.5), nn.BatchNorm1d(8))
    run = GeneralRun(workload, Settings(8))
    run.advance(5)
    run.model[2].eval()  # type: ignore[index]
    before = weights(run)
    told = run.evaluate()
    assert [m.training for m in run.model] == [True, True, False, True, True]  # type: ignore[attr-defined]
    assert equal(before, weights(run))
    x, y = own.tensors(20, seed=1)
    run.model.eval()
    output = run.model(x).detach()
    assert told.loss == pytest.approx(float(F.cross_entropy(output, y)), rel=1e-6)
    assert told.metric == int((output.argmax(1) == y).sum()) / 20
    assert told.samples == 20
    assert run.evaluate("train").samples == own.SAMPLES


def test_evaluation_in_parts_is_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    mean = Metric(lambda o, y: (o.argmax(1) == y).double().mean(), "higher")
    run = GeneralRun(own.prepared(metric=mean), Settings(8))
    whole = run.evaluate()
    monkeypatch.setattr("batchlab.engine.evaluation.ROWS", 7)
    parts = run.evaluate()
    assert parts.loss == pytest.approx(whole.loss, rel=1e-6)
    assert parts.metric == pytest.approx(whole.metric, rel=1e-6)
    spoken = GeneralRun(words(weight=lambda batch: (batch["labels"] >= 0).sum()), Settings(8))
    seven = spoken.evaluate()
    monkeypatch.setattr("batchlab.engine.evaluation.ROWS", 40)
    assert seven.loss == pytest.approx(spoken.evaluate().loss, rel=1e-5)


def test_batch_norm_leaves_out_a_last_short_batch() -> None:
    run = GeneralRun(own.prepared(nn.BatchNorm1d(8)), Settings(13))
    run.advance(4)  # 3 of 13 in a pass of 40; a batch of 1 would fail
    assert (run.place.epoch, run.place.samples) == (1, 52)


def test_settings_out_of_range() -> None:
    workload = own.prepared()
    for settings, message in [
        (Settings(41), r"batch size 41: must be 1 to the 40 training samples of own"),
        (Settings(0), r"batch size 0: must be"),
        (Settings(8, micro_batch=9), r"micro-batch 9: must be 1 to the batch 8"),
        (Settings(8, learning_rate=-1.0), r"learning rate -1.0: must be positive"),
        (Settings(8, options={"beta2": 0.9}), r"SGD has no option 'beta2'; choose from"),
    ]:
        with pytest.raises(UserError, match=message):
            GeneralRun(workload, settings)


def test_fresh_starts_are_of_the_seed() -> None:
    def factory() -> UserWorkload:
        return own.workload(model=nn.Linear(own.INPUTS, own.CLASSES))

    workload = prepare(factory(), factory=factory)
    first, again, other = (
        weights(GeneralRun(workload, Settings(8), seed=seed, fresh=True)) for seed in (1, 1, 2)
    )
    given = weights(GeneralRun(workload, Settings(8), seed=1))
    assert equal(first, again)
    assert not equal(first, other)
    assert not equal(first, given)
    assert equal(given, list(workload.given.model.state_dict().values()))


def test_a_fresh_start_wants_a_factory() -> None:
    with pytest.raises(UserError, match=r"own: a fresh initialisation needs a factory"):
        GeneralRun(own.prepared(), fresh=True)


@pytest.mark.parametrize("number", [False, True])
def test_a_micro_batch_without_weight_contributes_nothing(number: bool) -> None:
    """The mean loss of no words is nan."""
    large = GeneralRun(heard(number=number), Settings(16))
    parts = GeneralRun(heard(number=number), Settings(16, micro_batch=1))
    assert large.advance(4) == parts.advance(4) == 4
    assert parts.status == "running"
    for a, b in zip(weights(large), weights(parts), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(large.losses(), parts.losses(), rtol=1e-5, atol=1e-6)


def test_a_part_without_weight_is_not_evaluated(monkeypatch: pytest.MonkeyPatch) -> None:
    run = GeneralRun(heard(), Settings(8))
    whole = run.evaluate()
    monkeypatch.setattr("batchlab.engine.evaluation.ROWS", 1)
    assert run.evaluate().loss == pytest.approx(whole.loss, rel=1e-5)
