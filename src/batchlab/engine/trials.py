"""Gradient trials: what a pass over so many samples adds up to, at each batch size.

With K = ceil(M / B) steps over M samples, g_k the gradient of the mean loss of the k-th batch and
b_k its size (b_K may be short), a pass gives

    mean-frozen     sum_k g_k          all at the starting weights
    sum-frozen      sum_k b_k g_k      all at the starting weights
    mean-stepping   sum_k g_k          the weights stepping by -rate g_k
    sum-stepping    sum_k b_k g_k      the weights stepping by -rate g_k
    mean-last       g_k                of the last full batch of the stepping pass
    sum-last        b_k g_k            of the last full batch of the stepping pass

of the last layer's weight matrix. Rate times mean-stepping is the displacement, exactly.

Shapes: R trials side by side, M samples of a trial, B of a batch, I inputs and O outputs of a
layer, N training samples.
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import product
from math import ceil
from typing import Self

import torch
from torch import nn

from batchlab.engine import mlp
from batchlab.engine.draws import trial_draw
from batchlab.engine.state import RunState
from batchlab.engine.train import SAVE_EVERY_S, Tick, ignore, initial_model
from batchlab.probes.values import ValueHistogram, kurtosis
from batchlab.record import BinRecord, TrialRecord
from batchlab.spec import CONVENTIONS, Convention, TrialsSpec, UserError, batch_slices
from batchlab.workloads.base import Data

STACK_BYTES = 8 * 2**20  # stacked weights of this size stay in the last-level cache


@dataclass(slots=True)
class TrialState:
    """The passes done so far: a record for each, and the raw values of all together.

    Passes are counted draw by draw, order by order.
    """

    done: int = 0
    records: list[TrialRecord] = field(default_factory=list)
    histograms: dict[str, ValueHistogram] = field(default_factory=dict)  # by `B/convention/layer`
    seconds: float = 0.0

    def bins(self) -> list[BinRecord]:
        """The histograms as records."""
        told = []
        for name, histogram in self.histograms.items():
            size, convention, layer = name.split("/")
            told += [BinRecord(int(size), convention, layer, *b) for b in histogram.compute()]
        return told

    def merge(self, other: Self) -> None:
        """Take in the passes that follow these."""
        self.done += other.done
        self.records += other.records
        for name, histogram in other.histograms.items():
            self.histograms.setdefault(name, ValueHistogram()).merge(histogram)

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The part of the state that is tensors."""
        return {name: histogram.counts for name, histogram in self.histograms.items()}

    def meta(self) -> dict[str, str]:
        """The rest of it, as text; floats survive the round trip to the bit."""
        records = json.dumps(self.records)
        return {"done": str(self.done), "records": records, "seconds": repr(self.seconds)}

    @classmethod
    def from_parts(cls, tensors: dict[str, torch.Tensor], meta: dict[str, str]) -> Self:
        """The state from what `tensors` and `meta` gave; `ValueError` where it is damaged."""
        try:
            records = [TrialRecord(*row) for row in json.loads(meta["records"])]
            histograms = {name: ValueHistogram(counts) for name, counts in tensors.items()}
            return cls(int(meta["done"]), records, histograms, float(meta["seconds"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not the state of trials: {error}") from None


def run_trials(
    spec: TrialsSpec,
    start: RunState,
    data: Data,
    *,
    begun: TrialState | None = None,
    tick: Tick = ignore,
    save: Callable[[TrialState], None] = ignore,
    save_every_s: float = SAVE_EVERY_S,
) -> TrialState:
    """Run the trials of the spec from the weights of `start`, the end of `spec.start`.

    Goes on from `begun` where that is given. `tick` may raise, in which case the state before
    the passes under way is handed to `save`; `save` is called every `save_every_s` besides.
    Raises `UserError` where the starting run diverged or its model is not a perceptron.
    """
    if start.status != "finished":
        raise UserError(f"no trials from a run that has {start.status}: {spec.start.key[:12]}")
    model = initial_model(spec.start, data)
    model.load_state_dict(start.group("model"))
    layers = mlp.linear_layers(model)
    if layers is None:
        raise UserError("gradient trials need a perceptron of Linear and ReLU layers")
    layer = [name for name, p in model.named_parameters() if p.ndim >= 2][-1]
    bytes_each = sum(p.numel() * p.element_size() for p in model.parameters())
    side_by_side = max(1, STACK_BYTES // bytes_each)
    passes = list(product(range(spec.draws), range(spec.orders)))
    state = begun or TrialState()
    began = saved = time.monotonic()
    before = state.seconds
    while state.done < len(passes):
        chunk = passes[state.done : state.done + side_by_side]
        try:
            state.merge(_run_chunk(spec, layers, layer, data, chunk, tick))
        except BaseException:
            save(state)
            raise
        state.seconds = before + time.monotonic() - began
        if time.monotonic() - saved >= save_every_s and state.done < len(passes):
            save(state)
            saved = time.monotonic()
    return state


def _run_chunk(
    spec: TrialsSpec,
    layers: list[nn.Linear],
    layer: str,
    data: Data,
    chunk: list[tuple[int, int]],
    tick: Tick,
) -> TrialState:
    """Some passes side by side, at every batch size."""
    out = TrialState(done=len(chunk))
    draws = [
        trial_draw(spec.start.seed, draw, order, spec.samples, len(data.train_x))
        for draw, order in chunk
    ]
    rows_RM = torch.stack(draws).to(data.train_x.device)
    weights, biases = mlp.stack(layers, len(chunk))
    walk = _Pass(weights, biases, data.train_x[rows_RM], data.train_y[rows_RM])
    for size in spec.batch_sizes:
        for convention, gradient_ROI in walk.gradients(size, spec.learning_rate):
            if convention not in spec.conventions:
                continue
            values = gradient_ROI.flatten(1)
            histogram = out.histograms.setdefault(f"{size}/{convention}/{layer}", ValueHistogram())
            histogram.update(values)
            told = {"norm": values.double().norm(dim=1), "kurtosis": kurtosis(values)}
            out.records += [
                TrialRecord(size, draw, order, convention, layer, name, value)
                for name, numbers in told.items()
                for (draw, order), value in zip(chunk, numbers.tolist(), strict=True)
            ]
        tick(len(chunk) * ceil(spec.samples / size))
    return out


class _Pass:
    """R trials over the same stack of starting weights, passed at one batch size after another."""

    def __init__(
        self,
        weights: list[torch.Tensor],
        biases: list[torch.Tensor],
        x_RMI: torch.Tensor,
        y_RM: torch.Tensor,
    ) -> None:
        self._weights, self._biases = weights, biases
        self._x, self._y = x_RMI, y_RM
        # At the starting weights one backward pass serves every batch size. Its gradients are of
        # the mean over all M samples; times M they are each sample's own.
        _, d, self._frozen_h = next(mlp.backward(weights, biases, x_RMI, y_RM))
        self._frozen_d = d * y_RM.shape[1]

    def gradients(self, size: int, rate: float) -> Iterator[tuple[Convention, torch.Tensor]]:
        """Every convention's gradient (R, O, I) of the pass at batch size `size`."""
        short = self._y.shape[1] % size
        whole = slice(0, self._y.shape[1] - short)
        mean_frozen = self._frozen(whole) / size
        if short:
            mean_frozen += self._frozen(slice(whole.stop, None)) / short
        full, tail, last = self._walk(size, rate)
        values = (
            mean_frozen,
            self._frozen(slice(None)),
            full + tail,
            size * full + short * tail,
            last,
            size * last,
        )
        yield from zip(CONVENTIONS, values, strict=True)

    def _frozen(self, rows: slice) -> torch.Tensor:
        """The sum of these samples' own gradients at the starting weights (R, O, I)."""
        return self._frozen_d[:, rows].mT @ self._frozen_h[:, rows]

    def _walk(self, size: int, rate: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The stepping pass: gradient sums over full batches, of the short one, and the last."""
        weights = [w.clone() for w in self._weights]
        biases = [b.clone() for b in self._biases]
        top = len(weights) - 1
        full = torch.zeros_like(weights[top])
        tail, last, gradient = torch.zeros_like(full), torch.zeros_like(full), full.clone()
        for rows in batch_slices(self._y.shape[1], size):
            x, y = self._x[:, rows], self._y[:, rows]
            for index, d, h in mlp.backward(weights, biases, x, y):
                if index == top:
                    torch.bmm(d.mT, h, out=gradient)
                    weights[index].sub_(gradient, alpha=rate)
                else:
                    weights[index].baddbmm_(d.mT, h, alpha=-rate)
                biases[index].sub_(d.sum(1), alpha=rate)
            if y.shape[1] == size:
                full += gradient
                last, gradient = gradient, last
            else:
                tail, gradient = gradient, tail
        return full, tail, last
