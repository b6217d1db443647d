"""Components of variance of known tables."""

import numpy as np
import pytest
from numpy.typing import NDArray

from batchlab.analysis.variance import components, shares


def table(
    draws: int, orders: int, draw: float, order: float, rest: float, seed: int = 0
) -> NDArray[np.float64]:
    """A table whose components are exactly these: effects are made orthogonal and scaled."""
    g = np.random.default_rng(seed)
    a, b = g.normal(size=(draws, 1)), g.normal(size=(1, orders))
    e = g.normal(size=(draws, orders))
    a, b = a - a.mean(), b - b.mean()
    e = e - e.mean(0) - e.mean(1, keepdims=True) + e.mean()
    a *= np.sqrt((draw + rest / orders) * (draws - 1) / (a**2).sum())
    b *= np.sqrt((order + rest / draws) * (orders - 1) / (b**2).sum())
    e *= np.sqrt(rest * (draws - 1) * (orders - 1) / (e**2).sum())
    made: NDArray[np.float64] = 7 + a + b + e
    return made


@pytest.mark.parametrize("shape", [(2, 2), (3, 8), (20, 20), (50, 4)])
def test_known_components(shape: tuple[int, int]) -> None:
    told = components(table(*shape, draw=2.0, order=0.5, rest=1.5))
    assert told == pytest.approx((2.0, 0.5, 1.5))
    assert told.total == pytest.approx(4.0)
    swapped = components(table(*shape, draw=2.0, order=0.5, rest=1.5).T)
    assert swapped == pytest.approx((0.5, 2.0, 1.5))


def test_unbiased_where_the_spread_of_means_is_not() -> None:
    g = np.random.default_rng(1)
    told, naive = [], []
    for _ in range(2000):
        y = 0.5 * g.normal(size=(6, 1)) + g.normal(size=(1, 4)) + 2 * g.normal(size=(6, 4))
        told.append(components(y))
        naive.append(y.mean(axis=1).var(ddof=1))
    error = np.std(told, axis=0) / np.sqrt(len(told))
    assert np.all(np.abs(np.mean(told, axis=0) - (0.25, 1.0, 4.0)) < 4 * error)
    assert np.mean(naive) > 0.25 + 10 * error[0]  # the negative control: rest / O is in it


def test_a_negative_component_is_told_and_only_its_share_clipped() -> None:
    y = table(20, 10, draw=1.0, order=0.0, rest=1.0)
    y -= y.mean(axis=0)  # no order differs from another any longer: less than chance would give
    told = components(y)
    assert told.order == pytest.approx(-told.rest / 20)
    s = shares(y)
    assert (s.order.effect, s.order.low) == (0, 0)
    assert s.draw.effect == pytest.approx(told.draw / told.total)
    for i in s:
        assert 0 <= i.low <= i.effect <= i.high <= 1
        assert i.n == 20


def test_shares_do_not_depend_on_the_unit() -> None:
    y = table(8, 6, draw=1.0, order=0.3, rest=0.5)
    for ours, theirs in zip(shares(y), shares(1e-6 * y), strict=True):
        assert (ours.effect, ours.low, ours.high) == pytest.approx(
            (theirs.effect, theirs.low, theirs.high), rel=1e-6
        )


def test_more_draws_and_orders_tell_more() -> None:
    few, many = (shares(table(n, n, draw=1.0, order=1.0, rest=1.0)) for n in (8, 40))
    for a, b in zip(few, many, strict=True):
        assert a.effect == pytest.approx(b.effect)
        assert a.low < b.low < b.effect < b.high < a.high


def test_all_due_to_the_draw() -> None:
    """At the largest batch size the order of a draw changes nothing."""
    y = np.random.default_rng(0).normal(size=(10, 1)) + np.zeros((10, 5))
    s = shares(y)
    assert (s.draw.effect, s.draw.low, s.draw.high) == pytest.approx((1, 1, 1))
    assert (s.order.high, s.rest.high) == pytest.approx((0, 0), abs=1e-9)
    in_float32 = shares(y * (1 + 1e-7 * np.random.default_rng(1).normal(size=(10, 5))))
    assert in_float32.draw.low > 1 - 1e-9


def test_too_little_to_tell() -> None:
    with pytest.raises(ValueError, match=r"at least 2 draws by 2 orders is needed, not \(1, 5\)"):
        components(np.ones((1, 5)))
    with pytest.raises(ValueError, match="at least 3 draws by 3 orders"):
        shares(table(5, 2, 1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match="no variance to share"):
        shares(np.ones((5, 5)))
    with pytest.raises(ValueError, match="finite value in every order"):
        shares([[1.0, 2.0, 3.0], [1.0, float("nan"), 3.0], [3.0, 2.0, 1.0]])
    with pytest.raises(ValueError, match="at least 2 draws"):
        components(np.ones((2, 2, 2)))
