"""The noise scale as a callback of Lightning: `Trainer(callbacks=[NoiseScaleCallback()])`.

Automatic optimization on one device or under DDP. Accumulated micro-batches and the factor of a
gradient scaler are known to the trainer and taken into account; values go through `log_dict` to the
trainer's loggers, every `log_every_n_steps`. A batch has as many examples as its first tensor has
rows; where it holds none, `training_step` says `callback.micro_batch(examples)`.
"""

from typing import Any

from batchlab.integrations.base import flat
from batchlab.integrations.callback import NoiseCallback
from batchlab.integrations.sources import first_dimension
from batchlab.spec import UserError

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
except ModuleNotFoundError:
    raise UserError("Lightning is not there: pip install batchlab[lightning]") from None


class NoiseScaleCallback(NoiseCallback, Callback):
    """`compute` gives the report, while training and after; the options are `NoiseScale`'s."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the hooks on."""
        if not pl_module.automatic_optimization:
            raise UserError(
                "manual optimization: call batchlab.NoiseScale in training_step instead"
            )
        if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
            raise UserError(f"{type(trainer.strategy).__name__}: use one device or DDPStrategy")
        if len(trainer.optimizers) != 1:
            raise UserError(f"one optimizer is needed, not {len(trainer.optimizers)}")
        assert trainer.model is not None
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        self._begin(trainer.model, trainer.optimizers[0], scaler)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """A micro-batch begins."""
        if examples := first_dimension(batch):
            self.micro_batch(examples)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: object
    ) -> None:
        """Measure; Lightning has unscaled the gradients and not yet clipped them."""
        if self._watch is None:
            return
        self._watch.divided = trainer.accumulate_grad_batches
        self._watch.step()
        cadence: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if self._watch.steps % cadence == 0:
            pl_module.log_dict(flat(self._watch.readings()), batch_size=1)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the hooks off, after an error too."""
        self._end()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the hooks off."""
        self._end()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Take the hooks off."""
        self._end()
