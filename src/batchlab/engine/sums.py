"""What the gradients of a pass add up to, under every reading, and what is measured on it.

With K = ceil(M / B) steps over M samples, g_k the gradient of the mean loss of the k-th batch and
b_k its size (b_K may be short), a pass gives

    mean-frozen     sum_k g_k          all at the starting weights
    sum-frozen      sum_k b_k g_k      all at the starting weights
    mean-stepping   sum_k g_k          the weights stepping by -rate g_k
    sum-stepping    sum_k b_k g_k      the weights stepping by -rate g_k
    mean-last       g_k                of the last full batch of the stepping pass
    sum-last        b_k g_k            of the last full batch of the stepping pass

of a layer's weight matrix. Rate times mean-stepping is the layer's displacement, exactly. All six
come from one pass and the gradients at the starting weights.

Shapes: R trials side by side, M samples of a trial, B of a batch, I and O inputs and outputs of a
layer.
"""

from collections.abc import Iterator

import torch

from batchlab.engine.passes import ALL, Pass, Walker
from batchlab.spec import Convention

MEANS: tuple[Convention, ...] = ("mean-frozen", "mean-stepping", "mean-last")
SUMS: tuple[Convention, ...] = ("sum-frozen", "sum-stepping", "sum-last")


class Sums:
    """The gradients of R trials' passes, at one batch size after another."""

    def __init__(self, walker: Walker, deep: int = 0) -> None:
        """Of the last layer, and of all layers of the first `deep` trials, for which the walker
        must be deep."""
        self._walker, self._deep = walker, deep
        self.frozen = walker.frozen()
        self._samples = self.frozen.updates[-1].shape[1]
        self._last = last = len(self.frozen.updates) - 1
        layers = range(last + 1) if deep else [last]
        self._total = {k: self._of(self.frozen, k).sum(k, ALL) for k in layers}

    def of(self, size: int, rate: float) -> Iterator[tuple[int, Convention, torch.Tensor]]:
        """Every layer's gradient (R, O, I) of the pass at batch size `size`, by convention.

        R are the first `deep` trials where the layer is not the last.
        """
        short = self._samples % size
        tail = slice(self._samples - short, None)
        final = slice(self._samples - short - size, self._samples - short)
        if size == self._samples:  # of one step, which is at the starting weights
            for k, total in self._total.items():
                for one, all_ in zip(MEANS, SUMS, strict=True):
                    yield k, one, total / size
                    yield k, all_, total
            return
        passed = self._walker.walk(size, rate)
        for k, total in self._total.items():
            mean = total / size
            if short:
                mean += self._of(self.frozen, k).sum(k, tail) * (1 / short - 1 / size)
            yield k, "mean-frozen", mean
            yield k, "sum-frozen", total
            every, last = (self._gradient(passed, k, rows, rate) for rows in (ALL, final))
            yield k, "mean-stepping", every
            weighted = size * every
            if short:
                weighted -= (size - short) * self._gradient(passed, k, tail, rate)
            yield k, "sum-stepping", weighted
            yield k, "mean-last", last
            yield k, "sum-last", size * last

    def _gradient(self, passed: Pass, k: int, rows: slice, rate: float) -> torch.Tensor:
        """The sum of the mean gradients of the steps on these samples, in the data's precision.

        The hidden layers' are added up in it as well: from a pass in double, that is rounding alone
        and no unit's side.
        """
        dtype = self._total[k].dtype
        added = None if k == self._last else dtype
        return (self._of(passed, k).sum(k, rows, added) / -rate).to(dtype)

    def _of(self, passed: Pass, k: int) -> Pass:
        """Of the trials whose gradient of this layer is wanted."""
        return passed if k == self._last else passed.first(self._deep)
