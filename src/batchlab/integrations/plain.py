"""Watches for a plain loop: noise scale, gradient norm, distance.

```
watch = batchlab.NoiseScale(model)
for x, y in loader:
    loss(model(x), y).backward()
    watch.step()
    optimizer.step(), optimizer.zero_grad()
print(watch.compute())
```

Shapes: P parameters, S measured steps.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from batchlab.analysis.noise_scale import estimate
from batchlab.integrations.base import Watch
from batchlab.integrations.curve import Curve
from batchlab.integrations.noise_report import NoiseReport
from batchlab.integrations.sources import (
    Divided,
    Examples,
    MicroBatches,
    Ranks,
    Reduction,
    Source,
    source,
    trained_alone,
)
from batchlab.integrations.witness import Witness
from batchlab.probes.hooks import trained
from batchlab.probes.noise_scale import NoiseStatistics
from batchlab.probes.norms import Floats, Norms
from batchlab.probes.parts import Parts
from batchlab.record import ALL, Reading
from batchlab.spec import UserError

RECENT = 200  # measured steps that `readings` are of


class NoiseScale(Watch):
    """B_simple along the user's training, with its interval.

    Per-example norms where all layers have them; the ranks of `DistributedDataParallel`; else the
    micro-batches of gradient accumulation, which then is needed. `compute` says which, and why.
    Micro-batches are recognised in any case. What the first step shows not to have per-example
    norms goes on from micro-batches. Later a step that can't be told, or whose gradient is not
    finite, is left out and counted.

    - `every`: measure one step in so many; the model has no hooks in the others.
    - `by_layer`: every parameter's noise scale too.
    - `reduction`: of the loss over a (micro-)batch's examples.
    - `divided`: whether the loop divides the loss by the number of micro-batches, or by what.
    - `metric="optimizer"`: in the metric of Adam, AdamW, RMSprop, Adagrad; from micro-batches.
    - `scaler`: the loop's `GradScaler`, whose factor is taken out, before or after `unscale_`.
    - `clipped`: `step` stands after gradients were clipped by their norm, which is then undone; not
      for ranks, as a hook sees one rank's gradient before it is averaged.
    - `population`: N where batches are drawn without replacement from so few examples that it
      matters.

    The noise scale does not depend on a constant factor of the loss; tau, |G|^2 and the gradient
    norm do.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | None = None,
        *,
        every: int = 1,
        by_layer: bool = False,
        reduction: Reduction = "mean",
        divided: Divided = True,
        metric: Literal["plain", "optimizer"] = "plain",
        scaler: GradScaler | None = None,
        clipped: bool = False,
        population: int | None = None,
    ) -> None:
        super().__init__(every)
        if metric not in ("plain", "optimizer"):
            raise UserError(f"metric={metric!r}: 'plain', or 'optimizer' for the optimizer's own")
        if scaler is not None and not scaler.is_enabled():
            scaler = None  # it has no factor
        for name, needs in (("metric='optimizer'", metric == "optimizer"), ("a scaler", scaler)):
            if needs and optimizer is None:
                raise UserError(f"{name} needs the optimizer: NoiseScale(model, optimizer, ...)")
        if reduction not in ("mean", "sum"):
            raise UserError(f"reduction={reduction!r}: 'mean' or 'sum', as the loss has it")
        self._given, self._model = model, trained_alone(model)
        self._optimizer, self._scaler = optimizer, scaler
        self.divided = divided  # may be set anew between steps
        self._reduction: Reduction = reduction
        self._by_layer = by_layer
        if clipped and isinstance(self._model, DistributedDataParallel):
            raise UserError("clipped=True can't be undone for ranks: step before clipping instead")
        self._source: Source = source(self._model, optimizer if metric == "optimizer" else None)
        self._witness = Witness(self._model) if clipped else None
        self._corrected = clipped or scaler is not None
        self._statistics = self._fresh(population)
        self._passed_over = 0
        self._why = ""  # the last step that was passed over could not tell
        self._looked = -1  # the step that was measured last

    @property
    def told(self) -> str:
        """What the noise scale is measured from, and why not from something finer."""
        return self._source.told

    @property
    def skipped(self) -> int:
        """Measured steps that could not tell, or whose gradient was not finite."""
        return self._passed_over + self._statistics.skipped

    def compute(self, last: int | None = None) -> NoiseReport:
        """The noise scale of all measured steps, or of the `last` so many.

        Raises `ValueError` where no step was measured, or none of these was finite. What the data
        do not decide comes back with an interval unbounded above, and says so.
        """
        told = {name: estimate(one) for name, one in self._statistics.compute(last).items()}
        whole = told.pop(ALL)
        return NoiseReport(whole, told, self.told, self.skipped, self._why)

    def hand_over(self, model: nn.Module, step: int) -> Tensor | Floats | None:
        """The norms of `.grad` by parameter, once, if it has just measured them in that step."""
        if model is not self._given or not step == self._looked == self.steps - 1:
            return None
        return self._source.hand_over() if isinstance(self._source, Examples) else None

    def readings(self) -> list[Reading]:
        """`noise_scale` with its interval, `_low` and `_high`, of the `RECENT` measured steps."""
        try:
            return self.compute(RECENT).readings()
        except ValueError:
            return []

    def _look(self) -> None:
        self._looked = self.steps
        try:
            step = self._source.take(self._reduction, self.divided)
            if step is not None and self._corrected:
                step = self._own(step)
        except UserError as error:
            step, why = None, str(error)
            if isinstance(self._source, Ranks):
                raise  # the others may wait for this one
            if self._statistics.steps:
                self._why = why
            elif isinstance(self._source, Examples):
                self._fall_back(why)
            else:
                raise
        if step is None:
            self._passed_over += 1
        else:
            self._statistics.update(step)

    def _own(self, step: Parts) -> Parts:
        """Without the scaler's factor, and as before clipping."""
        norms_2P = step.norms_2P
        factor = self._scaler._scale if self._scaler is not None else None
        if self._witness is not None:
            left = self._witness.left()
            norms_2P = norms_2P / torch.stack([torch.ones_like(left), left])[:, None]
        elif factor is not None:
            # After `unscale_`, `.grad` has the factor no more; what the hooks saw had it.
            assert self._scaler is not None
            state = self._scaler._per_optimizer_states.get(id(self._optimizer))
            if state is not None and state["stage"].name != "READY":
                norms_2P = torch.stack([norms_2P[0], norms_2P[1] * factor])
        if factor is not None:
            norms_2P = norms_2P / factor
        return step._replace(norms=norms_2P)

    def _fall_back(self, why: str) -> None:
        """A pass has shown what the modules did not: micro-batches from the next step on."""
        population = self._statistics.population
        self._source.remove()
        self._source = MicroBatches(self._model, f" ({why.split('; use chunks')[0]})")
        self._statistics = self._fresh(population)

    def _fresh(self, population: int | None) -> NoiseStatistics:
        return NoiseStatistics(self._source.names, population, total=not self._by_layer)

    def micro_batch(self, examples: int) -> None:
        """A micro-batch begins: for loops whose model is not called as a whole, or on no tensor.

        A loop that says so once says so before each. Per-example norms do not need it.
        """
        self._source.begin(examples)

    def _prepare(self, measured: bool) -> None:
        self._source.active = measured
        if self._witness is not None:
            self._witness.active = measured


class GradientNorm(Watch):
    """The gradient's Euclidean norm along training, of every parameter and in total.

    `of` is a `NoiseScale` of the same model that steps right before it: what that has found in the
    same step is not measured again, and nothing may change the gradient in between.
    """

    def __init__(self, model: nn.Module, *, every: int = 1, of: NoiseScale | None = None) -> None:
        super().__init__(every)
        own = trained(model)
        self._model, self._of = model, of
        self._parameters: list[Tensor] = list(own.values())
        self._norms = Norms(self._parameters)
        self._curve = Curve("gradient_norm", tuple(own), [p.ndim for p in self._parameters])

    def compute(self) -> Curve:
        """The norms of all measured steps."""
        return self._curve

    def readings(self) -> list[Reading]:
        """`gradient_norm` at the last measured step."""
        return self._curve.readings()

    def _look(self) -> None:
        if self._of is not None:
            there = self._of.hand_over(self._model, self.steps)
            if there is not None:
                self._curve.update(self.steps, there)
                return
        told = [g for p in self._parameters if (g := p.grad) is not None]
        if len(told) < len(self._parameters):
            told = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._parameters]
        self._curve.update(self.steps, self._norms.of(told))

    def _prepare(self, measured: bool) -> None:
        pass


class Distance(Watch):
    """How far the parameters are from where they were when it was made: |w - w0|.

    It keeps a copy of them. Step k is measured before its update: the way of k updates.
    """

    def __init__(self, model: nn.Module, *, every: int = 1) -> None:
        super().__init__(every)
        own = trained(model)
        self._parameters: list[Tensor] = list(own.values())
        begun = [p.detach().clone() for p in self._parameters]
        self._norms = Norms(self._parameters, begun)
        self._curve = Curve("distance", tuple(own), [p.ndim for p in self._parameters])

    def compute(self) -> Curve:
        """The distances of all measured steps."""
        return self._curve

    def readings(self) -> list[Reading]:
        """`distance` at the last measured step."""
        return self._curve.readings()

    def _look(self) -> None:
        self._curve.update(self.steps, self._norms.moved(self._parameters))

    def _prepare(self, measured: bool) -> None:
        pass
