"""Steps against samples: the hyperbola, its intervals, and how far it is from the data.

McCandlish et al. (An Empirical Model of Large-Batch Training, 2018): with S steps and E = S B
samples to a target at the best rate of each batch size B,

    (S / S_min - 1) (E / E_min - 1) = 1,    B_crit = E_min / S_min,    S = S_min (1 + B_crit / B),

so that B_crit takes twice S_min and twice E_min. Errors are taken to be relative: log S has one
standard deviation at every size. An unreached trial says that its steps are more than those tried
(Tobin, Econometrica 26, 1958).

Shapes: N trials, J sizes, G values of B_crit, K draws or seeds, B batch sizes asked for.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, nan
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

from batchlab.analysis.hyperbola import EXACT, Confidence, bounds, confidence, greatest
from batchlab.analysis.intervals import LEVEL, Interval, exponential
from batchlab.analysis.steps import Floats, Groups, Trials, checked, groups
from batchlab.spec import UserError

_SIGNIFICANT = 0.05


@dataclass(frozen=True, slots=True)
class Misfit:
    """How the means at the sizes tried differ from the hyperbola, and whether by chance.

    `deviation_J` is measured over fitted steps less 1 (its mean, where there are several trials);
    `largest` the one of largest size, at `size`. `p` is that of the lack-of-fit test: F of the
    deviations over the trials' own spread, chi squared where the error was given; nan without
    three sizes and either of these. Sizes with unreached trials have no mean and are not here.
    """

    size_J: Floats
    deviation_J: Floats
    largest: float
    size: float
    p: float

    @property
    def verdict(self) -> Literal["fits", "misfits", "untested"]:
        """`fits`: not told from chance at 5%. `untested`: there is nothing to compare with."""
        if np.isnan(self.p):
            return "untested"
        return "misfits" if self.p < _SIGNIFICANT else "fits"

    def __str__(self) -> str:
        said = {"fits": "the hyperbola fits", "misfits": "the hyperbola does not fit"}
        told = said.get(self.verdict, "the hyperbola is untested")
        p = "" if np.isnan(self.p) else f" (p = {self.p:.2g})"
        return f"{told}{p}: measured {100 * self.largest:+.1f}% at batch size {self.size:g}"


@dataclass(frozen=True, slots=True)
class TradeOff:
    """A fitted hyperbola. Intervals are 95%; 0 or inf is an end that the sizes do not decide.

    `critical` is B_crit in samples, `least_steps` S_min and `least_samples` E_min; n counts the
    trials. `diverged` and `unreached` count those that did, by size.
    """

    critical: Interval
    least_steps: Interval
    least_samples: Interval
    misfit: Misfit
    error: float  # standard deviation of a trial's log steps that the intervals rest on
    diverged: dict[float, int]
    unreached: dict[float, int]
    region: "Region"

    def steps(self, size: float) -> Interval:
        """Steps at a batch size, on the hyperbola."""
        return self.region.interval(lambda b, s: s + np.logaddexp(0.0, b - np.log(size)))

    def samples(self, size: float) -> Interval:
        """Samples at a batch size, on the hyperbola."""
        return self.steps(size).map(lambda steps: steps * size)

    def centres(self, sizes: ArrayLike) -> Floats:
        """The fitted steps at B sizes, as one case (1, B)."""
        return np.array([[self.steps(b).effect for b in np.asarray(sizes, float).tolist()]])

    def draw(self, sizes: ArrayLike, draws: int, generator: np.random.Generator) -> Floats:
        """Steps (K, B) on hyperbolas that the data allow, as often as they make them likely.

        What seeds share is left out: it moves all sizes alike.
        """
        c, freedom = self.region.confidence, self.region.freedom
        weight_G = np.exp(-c.excess_G / 2)
        if 0 < freedom < inf:
            weight_G = (1 + c.excess_G / freedom) ** (-(freedom + 1) / 2)
        g_K = generator.choice(len(weight_G), size=draws, p=weight_G / weight_G.sum())
        scale = self.error / self.critical.n**0.5
        least_K = c.least_G[g_K] + scale * generator.standard_normal(draws)
        log_B = np.log(np.asarray(sizes, dtype=float))
        steps_KB: Floats = np.exp(
            least_K[:, None] + np.logaddexp(0.0, c.critical_G[g_K][:, None] - log_B)
        )
        return steps_KB


@dataclass(frozen=True, slots=True)
class Region:
    """Which hyperbolas the data allow, and the fits (K, 2) without each of K shared seeds."""

    critical: float  # log B_crit, and log S_min, of greatest likelihood
    least: float
    confidence: Confidence
    freedom: float
    left_out_K2: Floats
    n: int

    def interval(self, of: Callable[[Floats, Floats], Floats]) -> Interval:
        """Of exp f(log B_crit, log S_min), f linear in log S_min with slope 0 or 1."""
        c = self.confidence
        effect = float(of(np.array(self.critical), np.array(self.least)))
        low_G, high_G = (
            of(c.critical_G, c.least_G - c.half_G),
            of(c.critical_G, c.least_G + c.half_G),
        )
        half = self._jackknife(of)
        low, high = min(float(low_G.min()), effect - half), max(float(high_G.max()), effect + half)
        return Interval(effect, low, high, self.n).map(exponential)

    def _jackknife(self, of: Callable[[Floats, Floats], Floats]) -> float:
        k = len(self.left_out_K2)
        if not k:
            return 0.0
        values_K = of(self.left_out_K2[:, 0], self.left_out_K2[:, 1])
        deviation = float(np.sqrt((k - 1) * values_K.var()))
        return float(stats.t.ppf(0.5 + LEVEL / 2, k - 1)) * deviation


def fit(frame: pd.DataFrame, error: float | None = None) -> TradeOff:
    """The hyperbola of greatest likelihood through trials (`steps.COLUMNS`).

    `error` is the standard deviation of a trial's log steps where it is known from elsewhere.

    Intervals are of the profile likelihood, at F's quantile: of the trials' scatter about the
    curve with N - 2 degrees of freedom, or, where the lack-of-fit test says that the curve is not
    the data's, of the sizes' scatter with J - 2, so that a misfit widens them. Where three or
    more seeds are shared by sizes they are also those of a jackknife over seeds, whichever is
    wider: a seed's luck is not averaged out by more sizes.

    Raises `UserError` where fewer than two sizes reached the target.
    """
    trials = checked(frame)
    if len(trials.sizes) < 2:
        raise UserError(
            f"two batch sizes that reached the target are needed, not {len(trials.sizes)}"
        )
    if error is not None and not 0 < error < inf:
        raise UserError(f"error: a positive number is needed, not {error}")
    n = len(trials.size_N)
    best, least, sigma = greatest(trials, error)
    misfit = _misfit(trials, best, error)
    freedom: float = inf if error else n - 2
    if misfit.verdict == "misfits":
        freedom = len(misfit.size_J) - 2
        sigma = max(sigma, float(np.sqrt(_square(groups(trials), best) / freedom)))
    elif not error and freedom:
        sigma *= (n / freedom) ** 0.5
    found = confidence(trials, best, sigma, freedom)
    region = Region(best, least, found, freedom, _left_out(trials), n)
    first, last = bounds(trials)
    none, every = best <= first + EXACT, best >= last - EXACT  # B_crit is 0, or infinite

    def interval(
        of: Callable[[Floats, Floats], Floats], zero: bool, infinite: bool, limit: float | None
    ) -> Interval:
        """`zero` and `infinite`: the ends are; `limit`: the effect, where it is one."""
        i = region.interval(of)
        effect = i.effect if limit is None else limit
        return Interval(effect, 0.0 if zero else i.low, inf if infinite else i.high, n)

    unreached, counts = np.unique(trials.size_N[~trials.reached_N], return_counts=True)
    low, high, free = found.open_low, found.open_high, freedom < 1
    return TradeOff(
        interval(lambda b, _: b, low, high, 0.0 if none else inf if every else None),
        interval(lambda _, s: s, high, free, 0.0 if every else None),
        interval(lambda b, s: b + s, low, free, 0.0 if none else None),
        misfit,
        sigma,
        trials.diverged,
        dict(zip(unreached.tolist(), counts.tolist(), strict=True)),
        region,
    )


def _left_out(trials: Trials) -> Floats:
    """log B_crit and log S_min without each seed; none where fewer than three are shared."""
    seeds = np.unique(trials.seed_N).tolist()
    cells = {*zip(trials.seed_N.tolist(), trials.size_N.tolist(), strict=True)}
    rest = [trials.without(seed) for seed in seeds]
    if len(seeds) < 3 or len(cells) == len(seeds) or min(len(r.sizes) for r in rest) < 2:
        return np.zeros((0, 2))
    return np.array([greatest(r, None)[:2] for r in rest])


def _deviations(g: Groups, best: float) -> Floats:
    """Of the sizes' mean log steps from the hyperbola's shape at its best level (J)."""
    rest_J = g.mean_J - np.logaddexp(0.0, best - np.log(g.size_J))
    deviation_J: Floats = rest_J - np.average(rest_J, weights=g.count_J)
    return deviation_J


def _square(g: Groups, best: float) -> float:
    return float(g.count_J @ _deviations(g, best) ** 2)


def _misfit(trials: Trials, best: float, error: float | None) -> Misfit:
    g = groups(trials)
    if len(g.size_J) < 2:  # a curve's level is in the one, or in none
        return Misfit(g.size_J, np.zeros(len(g.size_J)), nan, nan, nan)
    relative_J = np.expm1(_deviations(g, best))
    k = int(np.abs(relative_J).argmax())
    p = _lack_of_fit(g, _square(g, best), error)
    return Misfit(g.size_J, relative_J, float(relative_J[k]), float(g.size_J[k]), p)


def _lack_of_fit(g: Groups, square: float, error: float | None) -> float:
    freedom = len(g.size_J) - 2
    if freedom < 1:
        return nan
    if error:
        return float(stats.chi2.sf(square / error**2, freedom))
    if not g.freedom:
        return nan
    ratio = square / freedom / max(g.square / g.freedom, EXACT**2)
    return float(stats.f.sf(ratio, freedom, g.freedom))
