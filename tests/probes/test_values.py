"""Histograms and kurtosis of raw values."""

import pytest
import torch

from batchlab.probes.values import ValueHistogram, kurtosis


def test_kurtosis_of_known_distributions() -> None:
    g = torch.Generator().manual_seed(0)
    normal = torch.randn(1, 400_000, generator=g)
    uniform = torch.rand(1, 400_000, generator=g)
    two = torch.tensor([[-1.0, 1.0] * 10])
    assert float(kurtosis(normal)) == pytest.approx(3, abs=0.05)
    assert float(kurtosis(uniform)) == pytest.approx(1.8, abs=0.01)
    assert float(kurtosis(two)) == 1
    assert float(kurtosis(normal * 5 + 2)) == pytest.approx(float(kurtosis(normal)), rel=1e-4)


def test_every_value_is_in_its_bin_once() -> None:
    g = torch.Generator().manual_seed(0)
    values = torch.randn(10_000, generator=g, dtype=torch.float64).pow(5)
    values[:100] = 0
    probe = ValueHistogram()
    probe.update(values)
    bins = probe.compute()
    assert sum(n for _, _, n in bins) == len(values)
    for low, high, n in bins:
        inside = (values >= low) & (values < high) if low > 0 else (values > low) & (values <= high)
        if low == high == 0:
            inside = values == 0
        if max(abs(low), abs(high)) > 2e-8:  # the innermost bins take in all that is smaller
            assert int(inside.sum()) == n


def test_signs_are_told_apart() -> None:
    probe = ValueHistogram()
    probe.update(torch.tensor([-3.0, -3.0, 3.0]))
    (low, high, n), (_, _, m) = probe.compute()
    assert low < -3 < high < 0
    assert (n, m) == (2, 1)


def test_merge_equals_update() -> None:
    a, b, both = ValueHistogram(), ValueHistogram(), ValueHistogram()
    a.update(torch.tensor([1.0, 2.0]))
    b.update(torch.tensor([2.0, 0.0]))
    both.update(torch.tensor([1.0, 2.0, 2.0, 0.0]))
    a.merge(b)
    assert a.compute() == both.compute()
    assert b.compute() != both.compute()
