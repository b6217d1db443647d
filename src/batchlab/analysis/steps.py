"""Steps to a target as measured: one trial a row, and the curve through them of no formula.

A trial is one run at one batch size, until its target or its budget's end:

    batch_size   samples a step
    seed         which repetition; the same seed at several sizes shares what the seed fixes
    steps        to the target where it was reached; tried, where not
    outcome      reached, unreached (its steps are censored: more than those tried) or diverged

Shapes: N trials, J sizes, K draws, B sizes asked for.
"""

from dataclasses import dataclass
from math import exp, inf, log, nan
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.interpolate import PchipInterpolator
from scipy.optimize import brentq, isotonic_regression

from batchlab.analysis.intervals import LEVEL, Interval
from batchlab.spec import UserError

Floats = NDArray[np.float64]

COLUMNS: tuple[str, ...] = ("batch_size", "seed", "steps", "outcome")
OUTCOMES: tuple[str, ...] = ("reached", "unreached", "diverged")


@dataclass(frozen=True, slots=True)
class Trials:
    """Checked trials, those that diverged left out: `diverged` says how many, by size.

    Whatever is fitted holds for trials that do not diverge, and a size with many that do is not
    as cheap as its steps say.
    """

    size_N: Floats
    seed_N: NDArray[np.int64]
    log_steps_N: Floats
    reached_N: NDArray[np.bool_]
    diverged: dict[float, int]

    @property
    def sizes(self) -> Floats:
        """Sizes at which some trial reached the target (J), increasing."""
        return np.unique(self.size_N[self.reached_N])

    def without(self, seed: int) -> "Trials":
        """All trials but one seed's."""
        kept = self.seed_N != seed
        return Trials(
            self.size_N[kept],
            self.seed_N[kept],
            self.log_steps_N[kept],
            self.reached_N[kept],
            self.diverged,
        )


class Groups(NamedTuple):
    """Sizes all of whose trials reached the target, with the means of their log steps."""

    size_J: Floats
    mean_J: Floats
    count_J: Floats
    square: float  # sum of squares of log steps within sizes
    freedom: int  # its degrees of freedom

    @property
    def error(self) -> float:
        """Standard deviation of a trial's log steps; nan without a second trial at any size."""
        return (self.square / self.freedom) ** 0.5 if self.freedom else nan


class Reading(NamedTuple):
    """Steps at a batch size; `measured` says whether there, or between two sizes that were."""

    steps: Interval
    measured: bool


@dataclass(frozen=True, slots=True)
class Monotone:
    """Steps that never rise with the batch size, of no formula: read between the sizes tried.

    `low_J` and `high_J` are the ends of the 95% interval of the mean log steps, of one error
    pooled over sizes; infinite without a second trial. `error` is the standard deviation of a
    trial's log steps, nan without a second. `left_out`: sizes with unreached trials.
    """

    size_J: Floats
    log_steps_J: Floats
    low_J: Floats
    high_J: Floats
    count_J: Floats
    error: float
    left_out: tuple[float, ...]

    def at(self, size: float) -> Reading:
        """Steps at `size`; between sizes by monotone cubics in log-log (Fritsch and Carlson, 1980).

        Raises `UserError` outside of what was measured.
        """
        first, last = self.size_J[0], self.size_J[-1]
        if not first <= size <= last:
            raise UserError(f"no steps measured at {size:g}; sizes from {first:g} to {last:g} were")
        curves = self.log_steps_J, self.low_J, self.high_J
        effect, low, high = (exp(self._through(value_J, size)) for value_J in curves)
        n = int(self.count_J[max(int(np.searchsorted(self.size_J, size)) - 1, 0) :][:2].min())
        measured = size in self.size_J
        if measured:
            n = int(self.count_J[self.size_J == size][0])
        return Reading(Interval(effect, low, high, n), measured)

    def centres(self, sizes: ArrayLike) -> Floats:
        """Steps at B sizes, as one case (1, B). Raises as `at` does."""
        return np.array([[self.at(b).steps.effect for b in np.asarray(sizes, float).tolist()]])

    def draw(self, sizes: ArrayLike, draws: int, generator: np.random.Generator) -> Floats:
        """Steps (K, B): the sizes' means move by their error; not at all where that is not known.

        Raises as `at` does.
        """
        self.centres(sizes)
        scale_J = np.nan_to_num(self.error) / np.sqrt(self.count_J)
        moved_KJ = self.log_steps_J + scale_J * generator.standard_normal((draws, len(scale_J)))
        falling_KJ = np.minimum.accumulate(moved_KJ, axis=1)
        curves = PchipInterpolator(np.log(self.size_J), falling_KJ, axis=1)
        steps_KB: Floats = np.exp(curves(np.log(np.asarray(sizes, dtype=float))))
        return steps_KB

    def critical(self, overhead: float = 0.2) -> float:
        """The size whose samples to the target are 1 + `overhead` times the smallest size's.

        Zhang et al. (2024) call it critical at 0.2, where the hyperbola's is B_crit / 5 for a
        smallest size far below. inf where no size tried costs that many.
        """

        def excess(log_size: float) -> float:
            rise = log_size - log(self.size_J[0])
            steps = self._through(self.log_steps_J, exp(log_size))
            return rise + steps - float(self.log_steps_J[0]) - log(1 + overhead)

        logs = np.log(self.size_J).tolist()
        over = [i for i, x in enumerate(logs) if excess(x) > 0]
        return exp(brentq(excess, logs[over[0] - 1], logs[over[0]])) if over else inf

    def _through(self, value_J: Floats, size: float) -> float:
        if not np.all(np.isfinite(value_J)):
            return float(value_J[0])
        curve = PchipInterpolator(np.log(self.size_J), value_J)
        inside = np.clip(log(size), log(self.size_J[0]), log(self.size_J[-1]))
        return float(curve(inside))


def checked(frame: pd.DataFrame) -> Trials:
    """The trials of a tidy frame. Raises `UserError` for what is not one, naming the column."""
    missing = [name for name in COLUMNS if name not in frame.columns]
    if missing:
        raise UserError(f"trials: no column {missing[0]!r}; {', '.join(COLUMNS)} are needed")
    outcome = frame["outcome"].to_numpy(dtype=object)
    strange = [o for o in outcome.tolist() if o not in OUTCOMES]
    if strange:
        raise UserError(f"outcome: one of {', '.join(OUTCOMES)}, not {strange[0]!r}")
    size_N = frame["batch_size"].to_numpy(dtype=float)
    steps_N = frame["steps"].to_numpy(dtype=float)
    if not np.all((size_N > 0) & (size_N < inf)):
        raise UserError("batch_size: every size must be positive and finite")
    kept_N = outcome != "diverged"
    if not np.all((steps_N[kept_N] > 0) & (steps_N[kept_N] < inf)):
        raise UserError("steps: positive and finite unless diverged; unreached: the steps tried")
    gone, counts = np.unique(size_N[~kept_N], return_counts=True)
    return Trials(
        size_N[kept_N],
        frame["seed"].to_numpy(dtype=np.int64)[kept_N],
        np.log(steps_N[kept_N]),
        np.asarray(outcome[kept_N] == "reached", dtype=np.bool_),
        dict(zip(gone.tolist(), counts.tolist(), strict=True)),
    )


def groups(trials: Trials) -> Groups:
    """Means and spread of log steps at the sizes without an unreached trial."""
    censored = np.unique(trials.size_N[~trials.reached_N])
    full_N = ~np.isin(trials.size_N, censored)
    size_J, inverse_N, count_J = np.unique(
        trials.size_N[full_N], return_inverse=True, return_counts=True
    )
    y_N = trials.log_steps_N[full_N]
    mean_J = np.bincount(inverse_N, y_N, len(size_J)) / np.maximum(count_J, 1)
    square = float(((y_N - mean_J[inverse_N]) ** 2).sum())
    return Groups(size_J, mean_J, count_J.astype(float), square, len(y_N) - len(size_J))


def monotone(frame: pd.DataFrame) -> Monotone:
    """The reading of no formula: means of log steps, made to fall with the batch size.

    Least squares under that order (isotonic regression). Raises `UserError` where fewer than two
    sizes have no unreached trial.
    """
    trials = checked(frame)
    g = groups(trials)
    if len(g.size_J) < 2:
        raise UserError("two sizes at which every trial reached the target are needed")
    half_J = np.full(len(g.size_J), inf)
    if g.freedom:
        half_J = stats.t.ppf(0.5 + LEVEL / 2, g.freedom) * g.error / np.sqrt(g.count_J)
    middle_J = isotonic_regression(g.mean_J, weights=g.count_J, increasing=False).x
    left_out = np.setdiff1d(np.unique(trials.size_N), g.size_J)
    return Monotone(
        g.size_J,
        np.asarray(middle_J),
        np.minimum.accumulate(middle_J - half_J),
        np.minimum.accumulate(middle_J + half_J),
        g.count_J,
        g.error,
        tuple(left_out.tolist()),
    )
