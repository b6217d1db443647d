"""The noise scale as a callback of Hugging Face's Trainer, on one device.

```
callback = NoiseScaleCallback()
callback.add_to(trainer)  # before the loggers; with callbacks=[callback], after them
trainer.train()
print(callback.compute())
```

The trainer clips gradients before a callback can see them, which is undone. Its micro-batches weigh
equally here; where it weighs them by their tokens, that is so as far as these are as many.
"""

from typing import Any

from batchlab.integrations.base import flat
from batchlab.integrations.callback import NoiseCallback
from batchlab.spec import UserError

try:
    from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState
    from transformers import TrainingArguments as Arguments
except ModuleNotFoundError:
    raise UserError("transformers is not there: pip install batchlab[hf]") from None


class NoiseScaleCallback(NoiseCallback, TrainerCallback):
    """Values appear in the trainer's logs; the options are `NoiseScale`'s."""

    def add_to(self, trainer: Trainer) -> None:
        """Add it before the trainer's other callbacks, so that its loggers see the values."""
        trainer.callback_handler.callbacks.insert(0, self)

    def on_train_begin(
        self, args: Arguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Put the hooks on."""
        if args.world_size > 1 or args.n_gpu > 1:
            raise UserError(
                "several devices: watch one, or use batchlab.NoiseScale in a plain loop"
            )
        if args.torch_compile:
            raise UserError("torch_compile=True hides micro-batches: train without it to measure")
        optimizer = kwargs["optimizer"]
        self._begin(
            kwargs["model"],
            getattr(optimizer, "optimizer", optimizer),
            getattr(optimizer, "scaler", None),
            clipped=True,
        )

    def on_pre_optimizer_step(
        self, args: Arguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure, after the trainer's clipping."""
        if self._watch is not None:
            self._watch.step()

    def on_log(
        self,
        args: Arguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add the values to a log of training."""
        if self._watch is not None and logs is not None and "loss" in logs:
            values = flat(self._watch.readings())
            logs.update(values)
            state.log_history[-1].update(values)

    def on_train_end(
        self, args: Arguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the hooks off."""
        self._end()
