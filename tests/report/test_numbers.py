"""Numbers as the page shows them."""

from math import inf, nan

import pytest

from batchlab.report.numbers import interval, label, number


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0123, "0.0123"), (-0.5, "−0.500"), (254.31, "254"), (12345.0, "12,300"), (9.999, "10.0"),
        (0.0, "0"), (1e-7, "1.00×10⁻⁷"), (-2.5e6, "−2.50×10⁶"), (None, "–"), (nan, "–"),
        (inf, "∞"), (-inf, "−∞"),
    ],
)  # fmt: skip
def test_number(value: float | None, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("effect", "low", "high", "text"),
    [
        (0.012, 0.004, 0.020, "0.012 [0.004, 0.020]"),
        (254.3, 253.1, 255.2, "254.3 [253.1, 255.2]"),
        (0.0003, -0.2, 0.21, "0.00 [−0.20, 0.21]"),
        (-0.001, -0.2, 0.21, "0.00 [−0.20, 0.21]"),
        (1240.0, 870.0, 1760.0, "1,240 [870, 1,760]"),
        (1.23e-7, 0.9e-7, 1.5e-7, "(1.23 [0.90, 1.50])×10⁻⁷"),
        (0.98, 0.98, 0.98, "0.980 [0.980, 0.980]"),
        (0.98, -inf, inf, "0.980 [−∞, ∞]"),
        (0.5, None, None, "0.500"),
        (None, None, None, "no estimate"),
        (nan, 0.1, 0.2, "no estimate"),
    ],
)
def test_interval(effect: float | None, low: float | None, high: float | None, text: str) -> None:
    assert interval(effect, low, high) == text


def test_label() -> None:
    assert [label(v) for v in (64, 0.1, 64.0, -0.5, "B = 2")] == [
        "64",
        "0.1",
        "64",
        "−0.5",
        "B = 2",
    ]
