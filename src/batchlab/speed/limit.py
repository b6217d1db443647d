"""The least time that an optimizer step of a dense perceptron can take on given hardware.

Two things have to happen, and the longer one is the limit: the step's matrix products at the rate
of matrix products, and its memory traffic at the bandwidth of memory (the roofline model: Williams,
Waterman & Patterson 2009). Both counts leave out whatever a step could do without, so the limit is
a bound for any program that multiplies the dense matrices out. A program that doesn't (that skips
silent units, or never touches a layer because the inputs' inner products say what its updates
would do) may pass it.

`widths` are a perceptron's numbers of units, from inputs to classes: 64, 256, 256, 10.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

PASSES = 3  # over the weights: read forward, read backward (the update uses it too), written
FLOAT32 = 4  # bytes


class Rates(NamedTuple):
    """What the hardware does in a second, as measured."""

    flops: float  # floating-point operations of a matrix product
    bandwidth: float  # bytes to and from memory, for an array of the parameters' size


def parameters(widths: Sequence[int]) -> int:
    """Weights and biases."""
    return sum((i + 1) * o for i, o in pairwise(widths))


def flops(widths: Sequence[int], batch_size: int) -> int:
    """Floating-point operations of a step's matrix products, two a multiplication.

    Forward and for the weights' gradients every weight once a sample; for the inputs' gradients
    every weight but the first layer's, whose inputs are the data.
    """
    weights = sum(i * o for i, o in pairwise(widths))
    return 2 * batch_size * (3 * weights - widths[0] * widths[1])


def traffic(widths: Sequence[int], batch_size: int, states: int = 0) -> int:
    """Bytes a float32 step moves: the parameters three times, each state of the optimizer twice.

    The batch's inputs and its hidden activations count once each: what reads them again may find
    them in a cache. `states` is 0 for plain SGD, 1 with momentum, 2 for Adam.
    """
    passes = PASSES + 2 * states
    return FLOAT32 * (passes * parameters(widths) + batch_size * sum(widths[:-1]))


def steps_a_second(widths: Sequence[int], batch_size: int, rates: Rates, states: int = 0) -> float:
    """The limit: one over the longer of the products' time and the traffic's."""
    arithmetic = flops(widths, batch_size) / rates.flops
    memory = traffic(widths, batch_size, states) / rates.bandwidth
    return 1 / max(arithmetic, memory)
