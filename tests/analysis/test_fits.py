"""Fits against exact curves."""

import numpy as np
import pytest

from batchlab.analysis.fits import at, exponent, power_law


def test_exact_power() -> None:
    x = np.array([1, 2, 3, 8, 1024])
    fit = power_law(x, 3 * x**-0.5)
    assert (fit.factor, fit.exponent) == pytest.approx((3, -0.5))
    assert power_law(x, 3 * x + 50).exponent != pytest.approx(1, abs=0.05)


def test_what_has_no_logarithm() -> None:
    for x, y in (([1, 2], [0, 1]), ([1, 2], [1, np.nan]), ([-1, 2], [1, 1])):
        with pytest.raises(ValueError, match="positive"):
            power_law(x, y)
    with pytest.raises(ValueError, match="two distinct"):
        power_law([2, 2], [1, 2])


def test_interpolation_is_linear_in_the_logarithm() -> None:
    assert at([1, 100], [0, 2], 10) == pytest.approx(1)
    assert np.isnan(at([1, 100], [0, 2], 1000))
    with pytest.raises(ValueError, match="increase"):
        at([1, 1], [0, 2], 1)


def test_an_exponent_or_none() -> None:
    assert exponent([1, 2, 4], [3, 6, 12]) == pytest.approx(1)
    assert np.isnan(exponent([1, 2, 4], [3, 0, 12]))
    assert np.isnan(exponent([], []))
