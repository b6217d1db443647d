"""Curves through measurements."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class PowerLaw(NamedTuple):
    """y = factor * x^exponent."""

    factor: float
    exponent: float


def power_law(x: ArrayLike, y: ArrayLike) -> PowerLaw:
    """Least squares on the logarithms; every point weighs the same.

    Raises `ValueError` where fewer than two distinct x are left or a value is not positive.
    """
    x_N, y_N = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if not (np.all(x_N > 0) and np.all(y_N > 0) and np.all(np.isfinite(y_N))):
        raise ValueError("a power law needs positive, finite values")
    if len(np.unique(x_N)) < 2:
        raise ValueError("a power law needs two distinct x")
    exponent, constant = np.polyfit(np.log(x_N), np.log(y_N), 1)
    # Where y does not depend on x at all the solver leaves its own rounding, some 1e-16.
    return PowerLaw(float(np.exp(constant)), round(float(exponent), 12))


def exponent(x: ArrayLike, y: ArrayLike) -> float:
    """The power law's exponent, or nan where there is none: for means that leave nans out."""
    try:
        return power_law(x, y).exponent
    except ValueError:
        return float("nan")


def at(x: ArrayLike, y: ArrayLike, where: float) -> float:
    """y at `where` by linear interpolation in log x; nan outside of what was measured.

    `x` is sorted and positive. Raises `ValueError` where it is not.
    """
    x_N, y_N = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if np.any(x_N <= 0) or np.any(np.diff(x_N) <= 0):
        raise ValueError("x must be positive and increase")
    return float(np.interp(np.log(where), np.log(x_N), y_N, left=np.nan, right=np.nan))
