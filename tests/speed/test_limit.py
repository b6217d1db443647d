"""The limit's arithmetic against numbers worked out by hand."""

import pytest

from batchlab.speed.limit import Rates, flops, parameters, steps_a_second, traffic

SMALL = (3, 4, 2)  # weights 12 and 8, biases 4 and 2
DIGITS = (64, 256, 256, 10)


def test_parameters() -> None:
    assert parameters(SMALL) == 12 + 4 + 8 + 2
    assert parameters(DIGITS) == 85002


def test_flops_of_a_step() -> None:
    # Forward 2 x 20, weights' gradients 2 x 20, inputs' gradients of the second layer 2 x 8.
    assert flops(SMALL, 1) == 40 + 40 + 16
    assert flops(SMALL, 5) == 5 * 96
    # Weights 16,384 + 65,536 + 2,560.
    assert flops(DIGITS, 1) == 2 * 84480 + 2 * 84480 + 2 * (65536 + 2560)


def test_traffic_of_a_step() -> None:
    # 26 parameters three times, 3 inputs and 4 activations a sample; four bytes each.
    assert traffic(SMALL, 1) == 4 * (78 + 7)
    assert traffic(SMALL, 10) == 4 * (78 + 70)
    # Adam's two states are read and written: seven passes.
    assert traffic(SMALL, 1, states=2) == 4 * (7 * 26 + 7)


def test_the_longer_of_the_two_is_the_limit() -> None:
    # 96 flops and 340 bytes.
    assert steps_a_second(SMALL, 1, Rates(96.0, 3400.0)) == pytest.approx(1)
    assert steps_a_second(SMALL, 1, Rates(9600.0, 340.0)) == pytest.approx(1)
    assert steps_a_second(SMALL, 1, Rates(192.0, 680.0)) == pytest.approx(2)
