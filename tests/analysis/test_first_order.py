"""First-order theory against what is exactly known of small populations and quadratic losses."""

from collections.abc import Sequence
from itertools import combinations, permutations
from math import inf, isnan, sqrt

import numpy as np
import pytest
from numpy.typing import NDArray

from batchlab.analysis.first_order import Moments, frozen_variance, predict

Array = NDArray[np.float64]


class Quadratics:
    """N losses w' H_i w / 2 + g_i' w at w = 0: gradients g_i (N, P) and Hessians H_i (N, P, P).

    The last two of three parameters are the layer watched, with first-order theory's moments.
    """

    def __init__(self, samples: int, spread: float = 1.0) -> None:
        r = np.random.default_rng(2)
        self.g = r.exponential(size=(samples, 3)) + 0.5
        self.g = self.g.mean(0) + spread * (self.g - self.g.mean(0))
        a = r.normal(size=(samples, 3, 3))
        self.H = a @ a.transpose(0, 2, 1) + self.g[:, :1, None] * np.eye(3)

    def passed(self, rows: tuple[int, ...], size: int, rate: float) -> float:
        """|S|^2 of one pass."""
        w, total = np.zeros(3), np.zeros(2)
        for begin in range(0, len(rows), size):
            batch = list(rows[begin : begin + size])
            step = (self.H[batch] @ w + self.g[batch]).mean(0)
            total += step[1:]
            w = w - rate * step
        return float(total @ total)

    def moments(self) -> Moments:
        g, H = self.g.mean(0), self.H.mean(0)
        e = self.g - g
        Pe, Pg, n = e[:, 1:], g[1:], len(e)
        Sigma_P = Pe.T @ Pe / n
        C = (self.H[:, 1:] @ g).T @ Pe / n
        T = H[1:] @ (e.T @ Pe) / n + C
        q = np.einsum("iab,ib->a", self.H, e)[1:] / n
        return Moments(
            signal=Pg @ Pg,
            noise=np.trace(Sigma_P),
            curvature=Pg @ H[1:] @ g,
            noise_curvature=np.trace(T - C),
            noise_slope=np.trace(C),
            pull=Pg @ q,
            noise_along=Pg @ Sigma_P @ Pg,
            noise_square=np.trace(Sigma_P @ Sigma_P),
            skew=((Pe @ Pg) * (Pe**2).sum(1)).mean(),
            fourth=((Pe**2).sum(1) ** 2).mean(),
            curvature_along=Pg @ Sigma_P @ H[1:] @ g,
            mixed_along=Pg @ T @ Pg,
            mixed_square=np.trace(Sigma_P @ T),
        )


@pytest.mark.parametrize("drawn", [1, 2, 4, 6, 7])
def test_frozen_is_exact_without_replacement(drawn: int) -> None:
    losses = Quadratics(7)
    squares = [losses.passed(rows, drawn, 0.0) for rows in combinations(range(7), drawn)]
    m = losses.moments()
    assert predict(m, drawn, drawn, 0.0, 7).mean_square == pytest.approx(np.mean(squares))
    variance = frozen_variance(m, drawn, 7) / drawn**4
    assert variance == pytest.approx(np.var(squares), rel=1e-9, abs=1e-9)
    if drawn < 7:  # the negative control: the normal part alone
        normal = frozen_variance(m._replace(skew=0.0, fourth=m.noise**2), drawn, 7) / drawn**4
        assert abs(normal / np.var(squares) - 1) > 0.02


def test_frozen_is_exact_with_replacement() -> None:
    losses = Quadratics(4)
    grid = np.stack(np.meshgrid(*[range(4)] * 5)).reshape(5, -1).T.tolist()
    squares = [losses.passed(tuple(rows), 5, 0.0) for rows in grid]
    m = losses.moments()
    assert predict(m, 5, 5, 0.0).mean_square == pytest.approx(np.mean(squares))
    assert frozen_variance(m, 5) / 5**4 == pytest.approx(np.var(squares))


def test_slope_in_rate_with_replacement() -> None:
    """d E|S|^2 / d rate, exact for quadratic losses; it is not without any one of its terms."""
    losses, m = Quadratics(4), Quadratics(4).moments()
    grid = [tuple(r) for r in np.stack(np.meshgrid(*[range(4)] * 6)).reshape(6, -1).T.tolist()]
    for size in (1, 2, 3):
        found = slope(losses, grid, size)
        assert predicted_slope(m, size, 6, inf) == pytest.approx(found, rel=1e-5)
        for name in ("curvature", "noise_curvature", "noise_slope"):
            without = predicted_slope(m._replace(**{name: 0.0}), size, 6, inf)
            assert abs(without / found - 1) > 0.02


def test_slope_in_rate_without_replacement() -> None:
    """Leading order in 1/N: close at N = 9, and not without the pull."""
    losses, m = Quadratics(9), Quadratics(9).moments()
    grid = list(permutations(range(9), 4))
    for size in (1, 2):
        found = slope(losses, grid, size)
        error = abs(predicted_slope(m, size, 4, 9) / found - 1)
        without = abs(predicted_slope(m._replace(pull=0.0), size, 4, 9) / found - 1)
        assert error < 0.02
        assert without > 2 * error


def slope(losses: Quadratics, grid: Sequence[tuple[int, ...]], size: int) -> float:
    """Central difference of the mean over all passes."""
    low, high = (np.mean([losses.passed(r, size, rate) for r in grid]) for rate in (-1e-4, 1e-4))
    return float(high - low) / 2e-4


def predicted_slope(m: Moments, size: int, samples: int, population: float) -> float:
    low, high = (predict(m, size, samples, r, population).mean_square for r in (0.0, 1e-6))
    return (high - low) / 1e-6


def test_the_three_numbers_agree() -> None:
    p = predict(Quadratics(50).moments(), 4, 40, 1e-3, 200)
    assert p.mean_square == pytest.approx(p.mean**2 + p.std**2)
    assert 0 < p.std < p.mean < sqrt(p.mean_square)


def test_a_whole_batch_takes_one_step_and_never_moves() -> None:
    m = Quadratics(20).moments()
    assert predict(m, 20, 20, 0.5, 100) == predict(m, 20, 20, 0.0, 100)


def test_all_samples_frozen_have_no_spread() -> None:
    m = Quadratics(20).moments()
    p = predict(m, 5, 20, 0.0, 20)
    assert p.std == 0
    assert p.mean == pytest.approx(4 * sqrt(m.signal))


def test_a_batch_size_that_does_not_divide_lies_between_its_neighbours() -> None:
    m = Quadratics(20).moments()
    means = [predict(m, size, 12, 0.001).mean for size in (3, 4, 5, 6)]
    assert means == sorted(means, reverse=True)


def test_nan_beyond_first_order() -> None:
    m = Quadratics(20, spread=0.1).moments()
    one = predict(m, 1, 20, 0.0)
    rates = [0.01 * k for k in range(100)]
    found = [predict(m, 1, 20, rate) for rate in rates]
    assert all(p.mean_square > 0 or isnan(p.mean_square) for p in found)
    assert all(isnan(p.mean) == isnan(p.std) for p in found)
    assert isnan(found[-1].mean_square)
    assert isnan(found[-1].std)
    assert found[0] == one
    halfway = [p for p in found if isnan(p.std) and not isnan(p.mean_square)]
    assert halfway  # the variance falls faster than the mean


@pytest.mark.parametrize(("size", "samples"), [(0, 5), (6, 5), (1, 11)])
def test_no_such_pass(size: int, samples: int) -> None:
    with pytest.raises(ValueError, match="no pass of"):
        predict(Quadratics(5).moments(), size, samples, 0.1, 10)
