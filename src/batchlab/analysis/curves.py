"""Which function of the batch size a quantity follows.

    constant     y = a                      the null: it does not depend on B
    power        y = a B^p                  p between -30 and 30
    affine       y = a + b sqrt(B)
    saturating   y = a + b B/(B + c)        c > 0, within 100 times the range of batch sizes

All are fitted by least squares on log y, so that errors are relative and every batch size weighs
the same, and compared by how well they predict batch sizes they have not seen. Families overlap:
y = b sqrt(B) is a power and affine, and B^-1 is nearly saturating with a small c.

Shapes: N measurements, C values of c tried.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import exp, inf, isnan, log, nan

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import least_squares, leastsq

Floats = NDArray[np.float64]

# Simplest first: of two that predict equally well the first is chosen.
FAMILIES: tuple[str, ...] = ("constant", "power", "affine", "saturating")
PARAMETERS: dict[str, int] = {"constant": 1, "power": 2, "affine": 2, "saturating": 3}
EQUAL = 1e-9  # scores closer than this differ by the solver's tolerance

# A prediction further than this factor from all that was fitted is counted as this far: a curve
# that runs to zero at a size left out is bad, but how near to zero it came has no meaning.
_FURTHEST = 1e3
_STEEPEST = 30.0  # exponent: two sizes next to each other may ask for one no float can hold
_C_RANGE = 100.0  # beyond, B/(B + c) is a straight line in B or in 1/B to a percent
_C_STARTS = 24
_DESCENTS = 4
_TOLERANCE = 1e-12
_EVALUATIONS = 100  # at most, a parameter


@dataclass(frozen=True, slots=True)
class Curve:
    """A fitted function of the batch size.

    `parameters` are in the order of the formula: (a), (a, p), (a, b) or (a, b, c). `error` is the
    root mean square of the fit's own log errors. Positive between the smallest and the largest
    size fitted; beyond, an affine or saturating curve may not be.
    """

    family: str
    parameters: tuple[float, ...]
    error: float

    def __call__(self, sizes: ArrayLike) -> Floats:
        """The curve's values, of the shape of `sizes`."""
        x = np.asarray(sizes, dtype=float)
        p = self.parameters
        values: Floats
        match self.family:
            case "constant":
                values = np.full_like(x, p[0])
            case "power":
                values = p[0] * x ** p[1]
            case "affine":
                values = p[0] + p[1] * np.sqrt(x)
            case _:
                values = p[0] + p[1] * x / (x + p[2])
        return values

    def __str__(self) -> str:
        p = [f"{value:.3g}" for value in self.parameters]
        if self.family in ("constant", "power"):
            return f"y = {' B^'.join(p)}"
        sign, b = ("-", p[1][1:]) if p[1].startswith("-") else ("+", p[1])
        term = "sqrt(B)" if self.family == "affine" else f"B/(B + {p[-1]})"
        return f"y = {p[0]} {sign} {b} {term}"


def fit(family: str, sizes: ArrayLike, values: ArrayLike) -> Curve:
    """The curve of the family with the least squared log errors; sizes may repeat.

    Raises `ValueError` where the family is unknown, a size or value is not positive and finite,
    or there are fewer distinct sizes than parameters.
    """
    x_N, y_N = _checked(sizes, values)
    if family not in FAMILIES:
        raise ValueError(f"no curve {family!r}; choose one of {', '.join(FAMILIES)}")
    needed, there = PARAMETERS[family], len(np.unique(x_N))
    if there < needed:
        raise ValueError(f"{family}: {needed} distinct sizes are needed, not {there}")
    return _fit(family, x_N, np.log(y_N), x_N.min(), x_N.max())


def cross_validate(sizes: ArrayLike, values: ArrayLike) -> dict[str, float]:
    """Root mean square of the log errors at batch sizes left out of the fit, by family.

    Every distinct size is left out in turn with all its measurements, the two ends as well, so
    that extrapolation counts. Curves are kept positive at the size left out too. nan where a
    family has more parameters than there are sizes left. Raises `ValueError` as `fit` does, and
    where there are fewer than two distinct sizes.
    """
    x_N, y_N = _checked(sizes, values)
    distinct = np.unique(x_N)
    if len(distinct) < 2:
        raise ValueError("two distinct sizes are needed to leave one out")
    low, high = distinct[0], distinct[-1]
    scores = {}
    for family in FAMILIES:
        if len(distinct) - 1 < PARAMETERS[family]:
            scores[family] = nan
            continue
        errors = []
        for size in distinct:
            out = x_N == size
            seen = y_N[~out]
            curve = _fit(family, x_N[~out], np.log(seen), low, high)
            told = np.clip(curve(x_N[out]), seen.min() / _FURTHEST, seen.max() * _FURTHEST)
            errors.append(np.log(told / y_N[out]))
        scores[family] = _rms(np.concatenate(errors))
    return scores


def best(scores: Mapping[str, float]) -> str:
    """The family that predicts best; of equals, the one with the fewest parameters.

    `scores` is what `cross_validate` gave, or a mean of several. Raises `ValueError` where all
    are nan.
    """
    there = {f: scores[f] for f in FAMILIES if f in scores and not isnan(scores[f])}
    if not there:
        raise ValueError("too few batch sizes to compare any curves")
    least = min(there.values())
    return next(f for f, score in there.items() if score <= least + EQUAL)


def _fit(family: str, x_N: Floats, log_N: Floats, low: float, high: float) -> Curve:
    """`low` and `high`: between which batch sizes the curve must be positive."""
    parameters: tuple[float, ...]
    if family == "constant":
        parameters = (exp(log_N.mean()),)
    elif family == "power":
        slope = float(np.clip(np.polyfit(np.log(x_N), log_N, 1)[0], -_STEEPEST, _STEEPEST))
        parameters = (exp(log_N.mean() - slope * np.log(x_N).mean()), slope)
    else:
        parameters = _between(family, x_N, log_N, low, high)
    curve = Curve(family, parameters, nan)
    told = np.maximum(curve(x_N), np.finfo(float).tiny)
    return Curve(family, parameters, _rms(np.log(told) - log_N))


def _between(family: str, x_N: Floats, log_N: Floats, low: float, high: float) -> tuple[float, ...]:
    """Affine and saturating curves, as y = e^u (1 - t) + e^v t with t from 0 to 1.

    u and v are log y at `low` and `high`; as both curves are monotone, any u and v make them
    positive between. For the saturating curve t = s (high + c) / (x + c) with s linear in x; its
    logarithm is computed, which loses no digits however large or small c is.
    """
    saturating = family == "saturating"
    part_N = (x_N - low) / (high - low)
    if not saturating:
        part_N = (np.sqrt(x_N) - np.sqrt(low)) / (np.sqrt(high) - np.sqrt(low))
    with np.errstate(divide="ignore"):
        log_t0_N, log_s0_N = np.log(part_N), np.log1p(-part_N)
    c_low, c_high = log(low / _C_RANGE), log(high * _C_RANGE)

    def logs(log_c: Floats | float) -> tuple[Floats, Floats]:
        """log t and log (1 - t); of every c, where `log_c` is (C, 1)."""
        if not saturating:
            return log_t0_N, log_s0_N
        c = np.exp(log_c)
        shrink = np.log(x_N + c)
        return log_t0_N + np.log(high + c) - shrink, log_s0_N + np.log(low + c) - shrink

    @lru_cache(maxsize=1)  # the solver asks for the slopes where it has just asked for the errors
    def parts_at(u: float, v: float, log_c: float = 0.0) -> tuple[Floats, Floats]:
        """The logarithms of the curve's first term and of the whole."""
        log_t, log_s = logs(log_c)
        first_N = u + log_s
        return first_N, np.logaddexp(first_N, v + log_t)

    def residuals(p: Floats) -> Floats:
        errors_N: Floats = parts_at(*p.tolist())[1] - log_N
        return errors_N

    def jacobian(p: Floats) -> Floats:
        """A row a parameter."""
        first_N, whole_N = parts_at(*p.tolist())
        weight = np.exp(first_N - whole_N)
        columns = [weight, 1 - weight]
        if saturating:
            c = np.exp(p[2])
            columns.append(weight * c / (low + c) + (1 - weight) * c / (high + c) - c / (x_N + c))
        return np.array(columns)

    # Start from a grid of c, each with the ends of least squared relative errors. Noise can make
    # the error over c fall to more than one minimum: descend from the best of each part.
    grid = np.linspace(c_low, c_high, _C_STARTS)[:, None] if saturating else np.zeros((1, 1))
    log_t, log_s = (np.atleast_2d(log_CN) for log_CN in logs(grid))
    ends = _ends(np.exp(log_s - log_N), np.exp(log_t - log_N))
    bottom, top = log_N.min() - log(_FURTHEST), log_N.max() + log(_FURTHEST)
    u, v = np.log(np.clip(ends, exp(bottom), exp(top)))[:, :, None]
    square = ((np.logaddexp(u + log_s, v + log_t) - log_N) ** 2).sum(axis=1)
    parts = np.array_split(np.arange(len(grid)), _DESCENTS if saturating else 1)
    chosen = [int(part[square[part].argmin()]) for part in parts]
    free = PARAMETERS[family]
    bounds = np.array([bottom, bottom, c_low])[:free], np.array([top, top, c_high])[:free]
    solved = [
        _descend(
            residuals,
            jacobian,
            np.clip(np.array([u[k, 0], v[k, 0], grid[k, 0]])[:free], bounds[0], bounds[1]),
            bounds,
        )
        for k in chosen
    ]
    _, p = min(solved, key=lambda one: one[0])
    first, last = exp(p[0]), exp(p[1])
    if not saturating:
        b = (last - first) / float(np.sqrt(high) - np.sqrt(low))
        return first - b * float(np.sqrt(low)), b
    c = exp(p[2])
    b = (last - first) * (low + c) * (high + c) / (c * (high - low))
    return first - b * low / (low + c), float(b), c


def _descend(
    residuals: Callable[[Floats], Floats],
    jacobian: Callable[[Floats], Floats],
    start: Floats,
    bounds: tuple[Floats, Floats],
) -> tuple[float, Floats]:
    """The nearest minimum, half its squared error first.

    Unbounded, which is many times faster, unless that leaves the bounds; by MINPACK itself, as
    what `least_squares` does around it takes most of its time.
    """
    t = _TOLERANCE
    most = _EVALUATIONS * len(start)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        p, _, info, _, _ = leastsq(
            residuals, start, (), jacobian, True, col_deriv=1, ftol=t, xtol=t, gtol=t, maxfev=most
        )
    if np.all((bounds[0] <= p) & (p <= bounds[1])):
        return 0.5 * float(np.dot(info["fvec"], info["fvec"])), p

    def transposed(p: Floats) -> Floats:
        return np.ascontiguousarray(jacobian(p).T)

    found = least_squares(residuals, start, transposed, bounds=bounds, ftol=t, xtol=t, gtol=t)
    return float(found.cost), found.x


def _ends(first_CN: Floats, last_CN: Floats) -> Floats:
    """The (2, C) weights of two columns whose sum is nearest to 1 in each row of C."""
    ff, ll = (first_CN**2).sum(axis=1), (last_CN**2).sum(axis=1)
    fl, f, last = (first_CN * last_CN).sum(axis=1), first_CN.sum(axis=1), last_CN.sum(axis=1)
    # Two columns that are nearly one: the determinant is rounding, and any start will do.
    determinant = np.maximum(ff * ll - fl * fl, np.finfo(float).eps * ff * ll)
    ends: Floats = np.stack([f * ll - last * fl, last * ff - f * fl]) / determinant
    return ends


def _rms(errors_N: Floats) -> float:
    return float(np.sqrt(np.mean(errors_N**2)))


def _checked(sizes: ArrayLike, values: ArrayLike) -> tuple[Floats, Floats]:
    x_N, y_N = np.asarray(sizes, dtype=float).ravel(), np.asarray(values, dtype=float).ravel()
    if x_N.shape != y_N.shape:
        raise ValueError(f"{len(x_N)} sizes, but {len(y_N)} values")
    if not (np.all((x_N > 0) & (x_N < inf)) and np.all((y_N > 0) & (y_N < inf))):
        raise ValueError("sizes and values must be positive and finite")
    return x_N, y_N
