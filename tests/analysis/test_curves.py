"""Curves in the batch size: exact ones recovered, the true one chosen, the wrong one not."""

from collections.abc import Callable
from time import perf_counter

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import Bounds, differential_evolution

from batchlab.analysis.curves import FAMILIES, PARAMETERS, best, cross_validate, fit

SIZES = np.array([1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128, 256, 512, 1024], dtype=float)
TRUTHS: dict[str, tuple[str, tuple[float, ...]]] = {
    "flat": ("constant", (3.0,)),
    "rising": ("power", (2.0, 0.3)),
    "falling": ("power", (2.0, -0.8)),
    "steep": ("power", (1e-3, 1.5)),
    "offset": ("affine", (5.0, 0.7)),
    "to the end": ("affine", (5.0, -0.15)),
    "levels off": ("saturating", (3.0, 10.0, 30.0)),
    "from nothing": ("saturating", (0.0, 4e-4, 20.0)),
    "falls to a floor": ("saturating", (13.0, -10.0, 5.0)),
}


def truth(name: str) -> NDArray[np.float64]:
    x, (family, p) = SIZES, TRUTHS[name]
    formulas: dict[str, Callable[[], NDArray[np.float64]]] = {
        "constant": lambda: np.full_like(x, p[0]),
        "power": lambda: p[0] * x ** p[1],
        "affine": lambda: p[0] + p[1] * np.sqrt(x),
        "saturating": lambda: p[0] + p[1] * x / (x + p[2]),
    }
    return formulas[family]()


def chosen(name: str, noise: float, seeds: int) -> list[str]:
    generator = np.random.default_rng(0)
    y = truth(name)
    noisy = [y * np.exp(generator.normal(0, noise, len(y))) for _ in range(seeds)]
    return [best(cross_validate(SIZES, values)) for values in noisy]


@pytest.mark.parametrize("name", TRUTHS)
def test_exact_curves_are_recovered(name: str) -> None:
    family, parameters = TRUTHS[name]
    y = truth(name)
    curve = fit(family, SIZES, y)
    assert curve.parameters == pytest.approx(parameters, rel=1e-6, abs=1e-9)
    assert curve.error < 1e-9
    assert curve(SIZES) == pytest.approx(y, rel=1e-9)
    scores = cross_validate(SIZES, y)
    assert scores[family] < 1e-8
    simpler = FAMILIES[: FAMILIES.index(family)]
    assert all(scores[other] > 0.05 for other in simpler)  # the negative control


@pytest.mark.parametrize("name", TRUTHS)
def test_the_true_family_is_chosen_under_one_percent_noise(name: str) -> None:
    family = TRUTHS[name][0]
    told = chosen(name, 0.01, seeds=12)
    # A constant is nested in the others, which now and then predict noise better by chance.
    assert told.count(family) >= (7 if family == "constant" else 11)


def test_an_affine_truth_is_not_a_power() -> None:
    assert "power" not in chosen("offset", 0.02, seeds=12)
    assert "affine" not in chosen("rising", 0.02, seeds=12)


def test_a_square_root_is_both_a_power_and_affine() -> None:
    """Exact, the first is named; under noise either may predict better, and neither is wrong."""
    y = 2 * np.sqrt(SIZES)
    assert best(cross_validate(SIZES, y)) == "power"
    assert fit("affine", SIZES, y).parameters == pytest.approx((0, 2), abs=1e-9)
    scores = cross_validate(SIZES, y * np.exp(np.random.default_rng(0).normal(0, 0.01, len(y))))
    assert scores["affine"] == pytest.approx(scores["power"], rel=0.2)
    assert scores["constant"] > 50 * scores["power"]


@pytest.mark.parametrize("family", ["affine", "saturating"])
def test_least_squares_against_a_global_search(family: str) -> None:
    generator = np.random.default_rng(3)
    for _ in range(3):
        y = np.exp(generator.normal(0, 0.4, len(SIZES)) + 0.3 * np.log(SIZES))

        def error(p: NDArray[np.float64], y: NDArray[np.float64] = y) -> float:
            g = np.sqrt(SIZES) if family == "affine" else SIZES / (SIZES + np.exp(p[-1]))
            t = (g - g[0]) / (g[-1] - g[0])
            told = np.exp(p[0]) * (1 - t) + np.exp(p[1]) * t
            return float(np.sqrt(np.mean(np.log(told / y) ** 2)))

        ends = np.log(y.min()) - 6, np.log(y.max()) + 2
        low, high = zip(ends, ends, (np.log(0.01), np.log(102400)), strict=True)
        bounds = Bounds(low[: PARAMETERS[family]], high[: PARAMETERS[family]])
        found = differential_evolution(error, bounds, seed=0, tol=1e-8, popsize=8)
        assert fit(family, SIZES, y).error == pytest.approx(found.fun, rel=1e-4)


def test_a_size_is_left_out_with_all_its_measurements() -> None:
    """The oracle: the null's score, by hand."""
    x, y = [1, 1, 4, 9], np.array([1.0, 2.0, 4.0, 8.0])
    logs = np.log(y)
    seen = [logs[2:], logs[2:], logs[[0, 1, 3]], logs[:3]]
    by_hand = np.sqrt(np.mean([(s.mean() - v) ** 2 for s, v in zip(seen, logs, strict=True)]))
    scores = cross_validate(x, y)
    assert scores["constant"] == pytest.approx(by_hand)
    one_by_one = [np.delete(logs, i).mean() - logs[i] for i in range(4)]
    assert scores["constant"] != pytest.approx(float(np.sqrt(np.mean(np.square(one_by_one)))))
    assert scores["power"] > 0
    assert np.isnan(scores["saturating"])  # two sizes are left, and it has three parameters


def test_positive_where_a_straight_line_is_not() -> None:
    """The unconstrained line through these runs below zero at the first size."""
    x, y = np.array([1.0, 4.0, 9.0, 16.0, 25.0]), np.array([1e-3, 0.5, 1.8, 3.0, 4.0])
    assert np.polyval(np.polyfit(np.sqrt(x), y, 1), 1.0) < 0
    for family in FAMILIES:
        assert (fit(family, x, y)(x) > 0).all()
    assert all(np.isfinite(list(cross_validate(x, y).values())))


def test_noise_of_any_size_is_fitted() -> None:
    """Warnings are errors here; two sizes next to each other ask for any exponent."""
    generator = np.random.default_rng(5)
    for n in (2, 3, 4, 8):
        for spread in (1e-6, 0.5, 5.0):
            x = np.sort(generator.choice(np.arange(1, 1025), n, replace=False))
            y = np.exp(generator.normal(0, spread, n)) * 10.0 ** generator.integers(-12, 12)
            scores = cross_validate(x, y)
            assert np.isfinite([s for f, s in scores.items() if PARAMETERS[f] < n]).all()
    assert np.isfinite(fit("power", [1023, 1024], [1e-3, 1e3])([1023, 1024])).all()


def test_formulas() -> None:
    told = {family: str(fit(family, SIZES, truth(name))) for name, (family, _) in TRUTHS.items()}
    assert told["constant"] == "y = 3"
    assert told["power"] == "y = 0.001 B^1.5"
    assert told["affine"] == "y = 5 - 0.15 sqrt(B)"
    assert told["saturating"] == "y = 13 - 10 B/(B + 5)"


def test_equals_go_to_the_simpler() -> None:
    scores = {"constant": 0.2, "power": 0.1, "affine": 0.1 - 1e-12, "saturating": float("nan")}
    assert best(scores) == "power"
    assert best(scores | {"affine": 0.09}) == "affine"
    with pytest.raises(ValueError, match="too few"):
        best({"constant": float("nan")})


def test_what_cannot_be_fitted() -> None:
    with pytest.raises(ValueError, match="choose one of"):
        fit("cubic", SIZES, SIZES)
    with pytest.raises(ValueError, match="3 distinct sizes are needed, not 2"):
        fit("saturating", [1, 1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match="2 sizes, but 3 values"):
        fit("power", [1, 2], [1, 2, 3])
    for x, y in (([1, 2], [1, 0]), ([0, 2], [1, 1]), ([1, 2], [1, np.nan]), ([1, 2], [1, np.inf])):
        with pytest.raises(ValueError, match="positive and finite"):
            cross_validate(x, y)
    with pytest.raises(ValueError, match="leave one out"):
        cross_validate([2, 2], [1, 2])


def test_fast_enough_to_be_called_hundreds_of_times() -> None:
    began = perf_counter()
    cross_validate(SIZES, truth("levels off") * np.linspace(0.9, 1.1, len(SIZES)))
    assert perf_counter() - began < 1.0  # 0.1 s on an idle core
