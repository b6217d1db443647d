"""The learning rate that goes with another batch size.

    SGD    rate' = rate (1 + N/B) / (1 + N/B')    linear far below the noise scale N, level above
           (McCandlish et al., 2018: eps_max / (1 + B_noise / B)); momentum unchanged
    Adam   rate' = rate sqrt(B'/B)                (Malladi et al., 2022)
           beta2' = beta2^(B'/B), beta1 unchanged: the second moment's half-life in samples stays
           (Marek et al., 2025)

Each is for rates that were best, or nearly, at B. Neither rule holds for every workload (Shallue
et al., 2019): try half and twice the rate.
"""

from math import inf, sqrt
from typing import NamedTuple

from batchlab.analysis.intervals import Interval
from batchlab.spec import UserError


class Adam(NamedTuple):
    """What of Adam's settings moves with the batch size."""

    rate: float
    beta2: float


def sgd(rate: float, size: float, other: float, noise: Interval) -> Interval:
    """SGD's rate at batch size `other`, from that at `size`, over the noise scale's interval.

    With momentum m too, which stays: the rate over 1 - m is what follows the rule. A noise scale
    without bounds (0 to inf) gives all between the same rate and a linear one.
    """
    _positive(rate=rate, size=size, other=other)
    ends = [_sgd(rate, size, other, n) for n in (noise.low, noise.high)]
    return Interval(_sgd(rate, size, other, noise.effect), min(ends), max(ends), noise.n)


def adam(rate: float, beta2: float, size: float, other: float) -> Adam:
    """Adam's rate and beta2 at batch size `other`, from those at `size`."""
    _positive(rate=rate, size=size, other=other)
    if not 0 < beta2 < 1:
        raise UserError(f"beta2: between 0 and 1, not {beta2:g}")
    return Adam(rate * sqrt(other / size), beta2 ** (other / size))


def momentum(coefficient: float, size: float, other: float) -> float:
    """The momentum that goes with batch size `other` at the same rate: B ~ rate / (1 - m).

    For batches well below the data set (Smith et al., 2018: a tenth). Raises `UserError` where a
    smaller batch would need a negative momentum.
    """
    _positive(size=size, other=other)
    if not 0 <= coefficient < 1:
        raise UserError(f"momentum: from 0 to 1, 1 excluded, not {coefficient:g}")
    if (moved := 1 - (1 - coefficient) * size / other) < 0:
        raise UserError(
            f"momentum: no coefficient makes up for batch size {other:g};"
            f" the smallest is {size * (1 - coefficient):g}"
        )
    return moved


def _sgd(rate: float, size: float, other: float, noise: float) -> float:
    return rate * other / size if noise == inf else rate * (1 + noise / size) / (1 + noise / other)


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not 0 < value < inf:
            raise UserError(f"{name}: a positive number is needed, not {value:g}")
