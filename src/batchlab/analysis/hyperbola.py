"""The likelihood of a hyperbola S = S_min (1 + B_crit / B), with unreached trials censored.

Of log S_min and log B_crit, at a given standard deviation of log steps. One is had from the other
(the deviance is convex in log S_min), so everything is a function of B_crit alone.

Shapes: N trials, G values of B_crit.
"""

from math import inf, log
from typing import NamedTuple

import numpy as np
from scipy import stats
from scipy.optimize import brentq, minimize_scalar
from scipy.special import log_ndtr

from batchlab.analysis.intervals import LEVEL
from batchlab.analysis.steps import Floats, Trials

# B_crit this many times beyond the sizes tried cannot be told from 0 or infinity: S changes by
# 1e-4 of itself over all of them.
_BEYOND = 1e4
_GRID = 241
_NEAR = 9
_STEPS = 50
_STILL = 1e-11
_SETTLED = 1e-4  # of sigma, relative
EXACT = 1e-6  # relative error of steps no smaller than the solver's


class Confidence(NamedTuple):
    """Values of log B_crit over its 95% interval (G), ends included.

    For each the best log S_min, half the interval of log S_min, and the deviance over its least.
    `open_low` and `open_high` say that the interval has no end there.
    """

    critical_G: Floats
    least_G: Floats
    half_G: Floats
    excess_G: Floats
    open_low: bool
    open_high: bool


def bounds(trials: Trials) -> tuple[float, float]:
    """Between which values of log B_crit a hyperbola is looked for."""
    return log(trials.size_N.min() / _BEYOND), log(trials.size_N.max() * _BEYOND)


def greatest(trials: Trials, error: float | None) -> tuple[float, float, float]:
    """log B_crit, log S_min and the standard deviation, of greatest likelihood or as given.

    B_crit is at one of the `bounds` where the likelihood rises towards it.
    """
    sigma, best = error or 0.1, None
    while True:
        best = _best(trials, sigma, near=best)
        level = float(least(trials, np.array([best]), sigma)[0])
        if error:
            return best, level, sigma
        z_N = (trials.log_steps_N - level - _bend(trials, np.array([best]))[0]) / sigma
        # E[Z^2 | Z > z] = 1 + z E[Z | Z > z]: an unreached trial's part of the variance.
        square_N = np.where(trials.reached_N, z_N**2, 1 + z_N * _hazard(z_N))
        before, sigma = sigma, max(sigma * float(np.sqrt(square_N.mean())), EXACT)
        # Without an unreached trial the best does not depend on sigma. With, this is EM.
        if trials.reached_N.all() or abs(sigma / before - 1) < _SETTLED:
            return best, level, sigma


def least(trials: Trials, critical_G: Floats, sigma: float) -> Floats:
    """The log S_min (G) of greatest likelihood for each log B_crit."""
    rest_GN = trials.log_steps_N - _bend(trials, critical_G)
    reached = trials.reached_N
    level_G: Floats = rest_GN.mean(axis=1)
    # The slope is concave in log S_min and negative here, where unreached trials count as reached:
    # Newton's steps rise to its zero and never pass it (Olsen, Econometrica 46, 1978).
    for _ in range(0 if reached.all() else _STEPS):
        z_GN = (rest_GN - level_G[:, None]) / sigma
        hazard_GN = _hazard(z_GN)
        pull_GN = np.where(reached, z_GN, hazard_GN)
        bent_GN = np.where(reached, 1.0, hazard_GN * (hazard_GN - z_GN))
        rise_G = sigma * pull_GN.sum(axis=1) / bent_GN.sum(axis=1)
        level_G = level_G + rise_G
        if np.abs(rise_G).max() < _STILL:
            break
    return level_G


def confidence(trials: Trials, best: float, sigma: float, freedom: float) -> Confidence:
    """The profile likelihood's interval at F's quantile of 1 and `freedom` degrees of freedom.

    Of inf degrees: where `sigma` is known. With none there is no interval but all.
    """
    outer = bounds(trials)
    coarse_G = np.linspace(*outer, _GRID)
    if freedom < 1:
        level_G = least(trials, coarse_G, sigma)
        return Confidence(coarse_G, level_G, np.full(_GRID, inf), np.zeros(_GRID), True, True)
    allowed = float(stats.chi2.ppf(LEVEL, 1) if freedom == inf else stats.f.ppf(LEVEL, 1, freedom))
    bottom = float(_profile(trials, np.array([best]), sigma)[0])

    def over(x: float) -> float:
        return float(_profile(trials, np.array([x]), sigma)[0]) - bottom - allowed

    def end(inside: float, outside: float) -> float:
        return float(brentq(over, inside, outside)) if over(outside) > 0 else outside

    inside = np.append(coarse_G[_profile(trials, coarse_G, sigma) - bottom <= allowed], best)
    step = (outer[1] - outer[0]) / (_GRID - 1)
    first = end(float(inside.min()), max(float(inside.min()) - step, outer[0]))
    last = end(float(inside.max()), min(float(inside.max()) + step, outer[1]))
    grid_G = np.linspace(first, last, _GRID)
    level_G, bend_GN = least(trials, grid_G, sigma), _bend(trials, grid_G)
    excess_G = np.maximum(_deviance(trials, level_G, bend_GN, sigma) - bottom, 0.0)
    # Quadratic in log S_min; exactly so where every trial reached the target.
    z_GN = (trials.log_steps_N - level_G[:, None] - bend_GN) / sigma
    hazard_GN = _hazard(z_GN)
    bent_GN = np.where(trials.reached_N, 1.0, hazard_GN * (hazard_GN - z_GN))
    half_G = sigma * np.sqrt(np.maximum(allowed - excess_G, 0.0) / bent_GN.sum(axis=1))
    return Confidence(grid_G, level_G, half_G, excess_G, first <= outer[0], last >= outer[1])


def _best(trials: Trials, sigma: float, near: float | None) -> float:
    """log B_crit of greatest likelihood, anywhere or `near` another."""
    low, high = bounds(trials)
    if near is None:
        grid_G = np.linspace(low, high, _GRID)
    else:
        grid_G = np.clip(np.linspace(near - 1, near + 1, _NEAR), low, high)
    profile_G = _profile(trials, grid_G, sigma)
    k = int(profile_G.argmin())
    around = grid_G[[max(k - 1, 0), min(k + 1, len(grid_G) - 1)]].tolist()
    found = minimize_scalar(
        lambda x: float(_profile(trials, np.array([x]), sigma)[0]),
        bounds=around,
        method="bounded",
        options={"xatol": 1e-9},
    )
    return float(found.x) if found.fun < profile_G[k] else float(grid_G[k])


def _profile(trials: Trials, critical_G: Floats, sigma: float) -> Floats:
    level_G = least(trials, critical_G, sigma)
    return _deviance(trials, level_G, _bend(trials, critical_G), sigma)


def _deviance(trials: Trials, least_G: Floats, bend_GN: Floats, sigma: float) -> Floats:
    """-2 log likelihood (G), the constant of the reached trials left out."""
    z_GN = (trials.log_steps_N - least_G[:, None] - bend_GN) / sigma
    reached = trials.reached_N
    square_G: Floats = (z_GN[:, reached] ** 2).sum(axis=1)
    tail_G: Floats = -2 * log_ndtr(-z_GN[:, ~reached]).sum(axis=1)
    return square_G + tail_G


def _bend(trials: Trials, critical_G: Floats) -> Floats:
    """log (1 + B_crit / B) (G, N)."""
    bend_GN: Floats = np.logaddexp(0.0, critical_G[:, None] - np.log(trials.size_N))
    return bend_GN


def _hazard(z: Floats) -> Floats:
    """E[Z | Z > z] = phi(z) / Phi(-z) of a standard normal Z."""
    hazard: Floats = np.exp(-z * z / 2 - log_ndtr(-z)) / np.sqrt(2 * np.pi)
    return hazard
