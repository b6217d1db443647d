"""What is measured on gradient trials: their sums' sizes, shapes and directions.

Shapes: R trials side by side, M samples of a trial, V values of a layer's weight matrix, I and O
its inputs and outputs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import combinations

import torch
from torch import nn
from torch.nn import functional as F

from batchlab.engine.draws import generator, trial_order, trial_set
from batchlab.engine.moments import Samples, full_gradient, moments
from batchlab.engine.passes import Start, Walker
from batchlab.engine.sums import MEANS, Sums
from batchlab.probes.competition import competition, cosine_counts, grams, inner_products
from batchlab.probes.values import ValueHistogram, kurtosis
from batchlab.record import ALL, FIRST_ORDER, PER_SAMPLE, TrialRecord
from batchlab.spec import Convention, TrialsSpec
from batchlab.workloads.base import Data

DIRECTED = MEANS  # a sum's direction is the same, but for the weight of a short batch
CROSSED: Convention = "mean-stepping"  # of which the cosines between batch sizes are taken


# Takes batch size, draw, order, convention and the last layer's raw gradient (O, I) of every pass
# as it comes, from any thread.
Keep = Callable[[int, int, int, Convention, torch.Tensor], None]


@dataclass(slots=True)
class Measured:
    """What came of some passes, in their order."""

    passes: int
    records: list[TrialRecord] = field(default_factory=list)
    histograms: dict[str, ValueHistogram] = field(default_factory=dict)  # by `B/convention/layer`
    cosines: torch.Tensor | None = None  # counts of the samples' own gradients' pairwise cosines

    def take(
        self,
        passes: Sequence[tuple[int, int]],
        size: int,
        convention: str,
        layer: str,
        name: str,
        values_R: torch.Tensor,
    ) -> None:
        """One number of each pass."""
        self.records += [
            TrialRecord(size, draw, order, convention, layer, name, value)
            for (draw, order), value in zip(passes, values_R.tolist(), strict=True)
        ]


class Measure:
    """Runs and measures passes, given as (draw, order), side by side at every batch size."""

    def __init__(
        self,
        spec: TrialsSpec,
        layers: Sequence[nn.Linear],
        names: Sequence[str],
        data: Data,
        keep: Keep | None,
    ) -> None:
        """`layers` hold the starting weights, `names` are those of their weight matrices."""
        self._spec, self._layers, self._names = spec, layers, names
        self._data, self._keep = data, keep
        self._weights = [layer.weight.detach() for layer in layers]
        self._biases = [layer.bias.detach() for layer in layers]
        self._full = full_gradient(self._weights, self._biases, data.train_x, data.train_y)
        self._along = [F.normalize(w_OI.flatten(), dim=0) for w_OI, _ in self._full]
        # A draw's orders come one after another, and a thread may be at the next draw already.
        self._start = lru_cache(maxsize=2)(self._start_of)

    def bytes_each(self, deep: bool) -> int:
        """Memory that a trial needs, about, as one of many side by side.

        The table of its samples' inner products and the first layer's output, in single precision
        and in double; every layer's inputs and updates, of the passes in double, of those in
        single, at the starting weights, and under way; weights of its own, in double or at large
        batch sizes in single; and where it is `deep` sums of all layers' gradients, by several
        conventions.
        """
        widths, samples = [len(b) for b in self._biases], self._spec.samples
        row = self._weights[0].shape[1] + 3 * (samples + widths[0]) + 10 * sum(widths)
        weights = 3 * sum(w.numel() for w in self._weights[1:])
        if deep:
            weights += 6 * sum(w.numel() for w in self._weights)
        return (samples * row + weights) * self._weights[0].element_size()

    def __call__(self, passes: Sequence[tuple[int, int]]) -> Measured:
        """Draw by draw, so that those in detail come first."""
        spec, out = self._spec, Measured(len(passes))
        deep = sum(draw < spec.detailed for draw, _ in passes)
        orders = [self._order(order) for _, order in passes]
        sets = {draw: self._set(draw) for draw in {draw for draw, _ in passes}}
        rows_RM = torch.stack(
            [sets[draw][order] for (draw, _), order in zip(passes, orders, strict=True)]
        )
        x_RMI, y_RM = self._data.train_x[rows_RM], self._data.train_y[rows_RM]
        last = len(self._layers) - 1
        directions: dict[int, torch.Tensor] = {}
        with torch.no_grad():
            if spec.orders > 1 and len(passes) == 1:  # many side by side go through draws too fast
                start = self._start(passes[0][0]).ordered(orders[0])
            else:
                start = Start.of(self._layers, x_RMI, y_RM)
            walker = Walker(self._layers, x_RMI, y_RM, deep=deep > 0, start=start)
            sums = Sums(walker, deep)
            for size in spec.batch_sizes:
                for k, convention, gradient_ROI in sums.of(size, spec.learning_rate):
                    if convention in spec.conventions:
                        of = passes[: len(gradient_ROI)]
                        self._sum(out, of, size, k, convention, gradient_ROI)
                        if deep and k == last and convention == CROSSED:
                            direction = F.normalize(gradient_ROI[:deep].flatten(1).double())
                            directions[size] = direction
            if deep:
                self._directions(out, passes[:deep], directions)
                for r, (draw, order) in enumerate(passes[:deep]):
                    if order == 0:
                        self._samples(out, draw, y_RM[r], start, r)
        return out

    def _set(self, draw: int) -> torch.Tensor:
        samples = len(self._data.train_x)
        rows = trial_set(self._spec.start.seed, draw, self._spec.samples, samples)
        return rows.to(self._data.train_x.device)

    def _order(self, order: int) -> torch.Tensor:
        places = trial_order(self._spec.start.seed, order, self._spec.samples)
        return places.to(self._data.train_x.device)

    def _start_of(self, draw: int) -> Start:
        rows_RM = self._set(draw).unsqueeze(0)
        return Start.of(self._layers, self._data.train_x[rows_RM], self._data.train_y[rows_RM])

    def _sum(
        self,
        out: Measured,
        passes: Sequence[tuple[int, int]],
        size: int,
        k: int,
        convention: Convention,
        gradient_ROI: torch.Tensor,
    ) -> None:
        """One layer's summed gradient under one convention."""
        layer, values_RV = self._names[k], gradient_ROI.flatten(1)
        norms = torch.linalg.vector_norm(values_RV, dim=1, dtype=torch.float64)
        out.take(passes, size, convention, layer, "norm", norms)
        if convention in DIRECTED:
            along = values_RV @ self._along[k]
            out.take(passes, size, convention, layer, "cosine", along / norms)
        if k < len(self._layers) - 1:
            return
        out.take(passes, size, convention, layer, "kurtosis", kurtosis(values_RV))
        histogram = out.histograms.setdefault(f"{size}/{convention}/{layer}", ValueHistogram())
        histogram.update(values_RV[norms.isfinite()])
        if self._keep is not None:
            for (draw, order), gradient in zip(passes, gradient_ROI, strict=True):
                self._keep(size, draw, order, convention, gradient)

    def _directions(
        self,
        out: Measured,
        passes: Sequence[tuple[int, int]],
        directions: dict[int, torch.Tensor],
    ) -> None:
        """Cosines between batch sizes, of the same pass."""
        for (a, one), (b, other) in combinations(directions.items(), 2):
            cosine = (one * other).sum(1)
            out.take(passes, a, CROSSED, self._names[-1], f"cosine to {b}", cosine)

    def _samples(self, out: Measured, draw: int, y_M: torch.Tensor, start: Start, r: int) -> None:
        """What the draw's samples say at the starting weights, one by one and to first order."""
        d, h = ([of[r] for of in both] for both in (start.own.updates, start.own.inputs))
        inner = [start.gram[r], *(inner_products(h_MI) for h_MI in h[1:])]
        pairs = zip(d, inner, strict=True)
        for layer, gram in grams(dict(zip(self._names, pairs, strict=True))).items():
            out.records += [
                TrialRecord(1, draw, 0, PER_SAMPLE, layer, reading.name, reading.value)
                for reading in competition(gram, layer)
            ]
            if layer == ALL:
                counts = cosine_counts(gram)
                out.cosines = counts if out.cosines is None else out.cosines + counts
        told = moments(
            Samples(self._weights, d, h, y_M, [k.to(d[0].dtype) for k in inner]),
            self._full,
            generator(self._spec.start.seed, "first order", draw),
            population=len(self._data.train_x),
        )
        out.records += [
            TrialRecord(1, draw, 0, FIRST_ORDER, self._names[-1], name, value)
            for name, value in told.items()
        ]
