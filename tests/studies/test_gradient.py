"""The gradient study's statistics against closed forms."""

import numpy as np
import pandas as pd
import pytest

from batchlab.studies.gradient import (
    draw_spread,
    least_tail_gain,
    norm_exponent,
    relative_spread,
    shape_exponent,
    spread_exponent,
    tail_decades,
    tail_threshold,
)
from batchlab.studies.results import Trials

SIZES = np.array([1, 2, 8, 64])
NO_BINS = pd.DataFrame(columns=["batch_size", "low", "high", "frequency"])


def trials(norms: np.ndarray, bins: pd.DataFrame = NO_BINS) -> Trials:
    kurtoses = 3 * SIZES[:, None, None] ** 0.2 + 0 * norms
    rows = [
        (int(SIZES[k]), draw, order, "top", name, value)
        for name, values in (("norm", norms), ("kurtosis", kurtoses))
        for (k, draw, order), value in np.ndenumerate(values)
    ]
    columns = ["batch_size", "draw", "order", "layer", "name", "value"]
    return Trials(pd.DataFrame(rows, columns=columns), bins)


def test_exponents() -> None:
    noise = np.random.default_rng(0).normal(size=(1, 200, 2))
    mean = SIZES[:, None, None] ** 0.5
    same = trials(mean * (10 + noise))
    assert norm_exponent(same) == pytest.approx(0.5)
    assert spread_exponent(same) == pytest.approx(0)
    assert shape_exponent(same) == pytest.approx(0.2)
    wider = trials(mean * (100 + (noise - noise.mean()) * SIZES[:, None, None] ** 0.3))
    assert norm_exponent(wider) == pytest.approx(0.5)
    assert spread_exponent(wider) == pytest.approx(0.3)
    assert relative_spread(wider)[0] == pytest.approx(noise.std(ddof=1) / 100)


@pytest.mark.parametrize(("between", "within"), [(1.0, 0.5), (0.0, 1.0), (2.0, 0.0)])
def test_spread_by_draw_is_what_orders_share(between: float, within: float) -> None:
    g = np.random.default_rng(1)
    norms = 20 + between * g.normal(size=(4, 4000, 1)) + within * g.normal(size=(4, 4000, 3))
    assert draw_spread(trials(norms), 8) == pytest.approx(between / 20, abs=0.006)


def test_one_order_cannot_tell_draw_from_order() -> None:
    with pytest.raises(ValueError, match="orders"):
        draw_spread(trials(np.arange(20.0).reshape(4, 5, 1) + 1), 1)


def tails(*counts: int) -> Trials:
    """Of one batch size after the other, so many values beyond the threshold of 4."""
    rows = []
    for size, beyond in zip(SIZES, counts, strict=True):
        rows += [(size, 0.1, 0.2, 60_000 - beyond), (size, -5.0, -4.0, beyond)]
        rows += [(size, 4.0, 5.0, 0), (size, 0.0, 0.0, 10)]
    bins = pd.DataFrame(rows, columns=["batch_size", "low", "high", "frequency"])
    assert tail_threshold(bins) == 4
    return trials(np.ones((4, 1, 1)), bins)


def test_tail() -> None:
    # the largest against the second smallest: 1 + 99 against 1 + 9
    assert tail_decades(tails(0, 9, 20, 99)) == pytest.approx(1)


def test_a_tail_that_grows_at_every_size() -> None:
    assert least_tail_gain(tails(0, 9, 20, 99)) == pytest.approx(np.log10(21 / 10))
    assert least_tail_gain(tails(50, 9, 99, 20)) == pytest.approx(np.log10(21 / 100))
    assert least_tail_gain(tails(0, 0, 0, 99)) == pytest.approx(2)  # two empty ones tell nothing
