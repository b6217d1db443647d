"""The distribution of a tensor's raw values: how long its tail is.

Shapes: R tensors (one a trial) of V values each.
"""

from math import ceil, floor, log10
from typing import Self

import torch

BINS_PER_DECADE = 20
SMALLEST, LARGEST = 1e-8, 1e8  # beyond, values are counted in the first or the last bin
_FIRST = floor(log10(SMALLEST) * BINS_PER_DECADE)
_SIDE = ceil(log10(LARGEST) * BINS_PER_DECADE) - _FIRST
BINS = 2 * _SIDE + 1


def kurtosis(values_RV: torch.Tensor) -> torch.Tensor:
    """E(v - Ev)^4 / Var(v)^2 of each row, in float64 (R).

    3 for a normal, more for heavy tails; nan for a row of equal values.
    """
    v = values_RV.double()
    square = (v - v.mean(1, keepdim=True)).square()
    return square.square().mean(1) / square.mean(1).square()


class ValueHistogram:
    """Counts of values in bins shared by all histograms: equal ratios, both signs, one for zero.

    A bin on the positive side holds 10^(k/20) <= v < 10^((k+1)/20). Bins are the same whatever
    is put in, so that counts of different batch sizes are compared at the same abscissa.
    """

    def __init__(self, counts: torch.Tensor | None = None) -> None:
        """Empty, or with the `counts` of another."""
        # negative bins, zero, positive bins
        self.counts = torch.zeros(BINS, dtype=torch.int64) if counts is None else counts

    def update(self, values: torch.Tensor) -> None:
        """Take in a tensor of any shape; values must be finite."""
        v = values.detach().flatten().double()
        size = v.abs()
        # An exponent that rounds onto an edge may land a bin too high or low by one ulp of the
        # value: the edge itself is not representable, so no count is wrong by more than that.
        rank = (size.clamp_min(SMALLEST).log10() * BINS_PER_DECADE).floor().long() - _FIRST
        rank = rank.clamp(0, _SIDE - 1) + 1
        index = torch.where(size > 0, torch.where(v > 0, rank, -rank), 0) + _SIDE
        self.counts += torch.bincount(index, minlength=BINS).cpu()

    def merge(self, other: Self) -> None:
        """Take in another histogram's counts."""
        self.counts += other.counts

    def compute(self) -> list[tuple[float, float, int]]:
        """`(low, high, count)` of every bin that is not empty, from the most negative on."""
        bins = []
        for index in self.counts.nonzero().flatten().tolist():
            low, high = _edges(index - _SIDE)
            bins.append((low, high, int(self.counts[index])))
        return bins


def _edges(signed_rank: int) -> tuple[float, float]:
    if signed_rank == 0:
        return 0.0, 0.0
    exponent = abs(signed_rank) - 1 + _FIRST
    low, high = 10 ** (exponent / BINS_PER_DECADE), 10 ** ((exponent + 1) / BINS_PER_DECADE)
    return (low, high) if signed_rank > 0 else (-high, -low)
