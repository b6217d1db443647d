"""What the callbacks of all trainers share: the options, the watch while training, its report."""

from typing import Literal

from torch import nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from batchlab.integrations.noise_report import NoiseReport
from batchlab.integrations.plain import NoiseScale
from batchlab.integrations.sources import Reduction


class NoiseCallback:
    """The options are `NoiseScale`'s. Abstract: a trainer's own kind begins, steps and ends it."""

    def __init__(
        self,
        *,
        every: int = 1,
        by_layer: bool = False,
        reduction: Reduction = "mean",
        metric: Literal["plain", "optimizer"] = "plain",
    ) -> None:
        self._every, self._by_layer = every, by_layer
        self._reduction, self._metric = reduction, metric
        self._watch: NoiseScale | None = None

    def compute(self, last: int | None = None) -> NoiseReport:
        """As `NoiseScale.compute`, while training and after."""
        if self._watch is None:
            raise ValueError("no step was measured")
        return self._watch.compute(last)

    def micro_batch(self, examples: int) -> None:
        """As `NoiseScale.micro_batch`: a batch begins whose size can't be seen."""
        if self._watch is not None:
            self._watch.micro_batch(examples)

    def _begin(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        scaler: GradScaler | None,
        *,
        clipped: bool = False,
    ) -> None:
        """Put the hooks on; a training that was broken off may have left its own."""
        self._end()
        self._watch = NoiseScale(
            model,
            optimizer,
            every=self._every,
            by_layer=self._by_layer,
            reduction=self._reduction,
            metric=self._metric,
            scaler=scaler,
            clipped=clipped,
        )

    def _end(self) -> None:
        """Take the hooks off."""
        if self._watch is not None:
            self._watch.remove()
