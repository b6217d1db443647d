"""A real Lightning trainer against the plain loop, on the same data."""

from collections import UserDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from batchlab import NoiseScale
from batchlab.spec import UserError
from tests.integrations.loops import data, perceptron, train
from tests.integrations.test_plain import hooks, normed

pytestmark = pytest.mark.filterwarnings("ignore")
pl = pytest.importorskip("lightning.pytorch")
from batchlab.integrations.lightning import NoiseScaleCallback  # noqa: E402


class Module(pl.LightningModule):  # type: ignore[name-defined,misc]
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        x, y = batch
        return F.cross_entropy(self.model(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class OfUserDicts(Module):
    def training_step(self, batch: Any, _: int) -> Tensor:
        return super().training_step((batch["x"], batch["y"]), _)


class OfHeld(Module):
    """Batches are of a class of their own."""

    callback: NoiseScaleCallback | None = None

    def training_step(self, batch: Any, _: int) -> Tensor:
        if self.callback is not None:
            self.callback.micro_batch(len(batch.pair[0]))
        return super().training_step(batch.pair, _)


class Held:
    def __init__(self, pair: tuple[Tensor, Tensor]) -> None:
        self.pair = pair


def fit(
    module: Module,
    callback: NoiseScaleCallback,
    where: Path,
    batches: Any = None,
    **options: Any,
) -> Any:
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        callbacks=[callback],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=where,
        **{"logger": False, "log_every_n_steps": 2} | options,
    )
    dataset: Any = batches or data()
    trainer.fit(module, torch.utils.data.DataLoader(dataset, batch_size=None))
    return trainer


@pytest.mark.parametrize(("micro_batches", "make"), [(1, perceptron), (3, perceptron), (3, normed)])
def test_the_plain_loops_numbers(micro_batches: int, make: Any, tmp_path: Path) -> None:
    module, callback = Module(make()), NoiseScaleCallback()
    trainer = fit(
        module,
        callback,
        tmp_path,
        accumulate_grad_batches=micro_batches,
        gradient_clip_val=1e9,
    )
    plain, (watch,) = train(lambda m, o: [NoiseScale(m, o)], make=make, micro_batches=micro_batches)
    assert isinstance(watch, NoiseScale)
    told, expected = callback.compute().estimate, watch.compute().estimate
    assert told.steps == expected.steps == 12 // micro_batches
    assert told.trace.effect == pytest.approx(expected.trace.effect, rel=1e-5)
    assert told.square.effect == pytest.approx(expected.square.effect, rel=1e-4)
    for a, b in zip(plain.parameters(), module.model.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    assert hooks(module) == 0
    assert float(trainer.callback_metrics["noise_scale_low"]) >= 0


def test_the_last_step_of_an_epoch_is_shorter(tmp_path: Path) -> None:
    """12 batches in fives: the last step has two micro-batches, of losses divided by five."""
    callback = NoiseScaleCallback()
    fit(Module(perceptron()), callback, tmp_path, accumulate_grad_batches=5, limit_train_batches=12)
    watch = callback._watch
    assert watch is not None
    series = watch._statistics.compute()["all"]
    assert series.examples_S.tolist() == [40, 40, 16]
    assert series.trace_S[2] == pytest.approx(series.trace_S[1], rel=0.5)


def test_values_reach_the_logger(tmp_path: Path) -> None:
    logger = pl.loggers.CSVLogger(tmp_path)
    fit(Module(perceptron()), NoiseScaleCallback(by_layer=True), tmp_path, logger=logger)
    text = next(tmp_path.rglob("metrics.csv")).read_text()
    assert "noise_scale_low/model.0.weight" in text.splitlines()[0]
    assert len(text.splitlines()) > 2


def test_bf16_autocast(tmp_path: Path) -> None:
    full, mixed = NoiseScaleCallback(), NoiseScaleCallback()
    fit(Module(perceptron()), full, tmp_path)
    fit(Module(perceptron()), mixed, tmp_path, precision="bf16-mixed")
    assert mixed.compute().estimate.trace.effect == pytest.approx(
        full.compute().estimate.trace.effect, rel=0.05
    )


def test_a_scaler_is_taken_out(tmp_path: Path) -> None:
    plugins = pytest.importorskip("lightning.pytorch.plugins.precision")
    scaler = torch.amp.GradScaler("cpu", init_scale=512.0)

    class Scaled(plugins.MixedPrecision):  # type: ignore[name-defined,misc]
        def forward_context(self) -> Any:
            return torch.autocast("cpu", enabled=False)

    plain, scaled = NoiseScaleCallback(), NoiseScaleCallback()
    fit(Module(perceptron()), plain, tmp_path, accumulate_grad_batches=3)
    fit(
        Module(perceptron()),
        scaled,
        tmp_path,
        accumulate_grad_batches=3,
        plugins=[Scaled("16-mixed", "cpu", scaler)],
    )
    a, b = plain.compute().estimate, scaled.compute().estimate
    assert b.trace.effect == pytest.approx(a.trace.effect, rel=1e-4)
    assert b.square.effect == pytest.approx(a.square.effect, rel=1e-3)


def test_manual_optimization_is_told_of(tmp_path: Path) -> None:
    module = Module(perceptron())
    module.automatic_optimization = False
    with pytest.raises(UserError, match="manual optimization"):
        fit(module, NoiseScaleCallback(), tmp_path)


def test_batches_of_any_mapping(tmp_path: Path) -> None:
    callback = NoiseScaleCallback()
    batches = [UserDict(x=x, y=y) for x, y in data()]
    fit(OfUserDicts(normed()), callback, tmp_path, batches, accumulate_grad_batches=3)
    assert callback.compute().estimate.steps == 4


def test_batches_whose_size_can_not_be_seen(tmp_path: Path) -> None:
    module, callback = OfHeld(normed()), NoiseScaleCallback()
    batches = [Held(pair) for pair in data()]
    with pytest.raises(UserError, match="size can't be seen"):
        fit(module, callback, tmp_path, batches, accumulate_grad_batches=3)
    module.callback = callback
    fit(module, callback, tmp_path, batches, accumulate_grad_batches=3)
    assert callback.compute().estimate.steps == 4
