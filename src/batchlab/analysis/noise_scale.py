"""The gradient noise scale with an interval, or that the data do not decide it.

B_simple = tr(Sigma) / |G|^2 is the batch size at which the noise of the mean gradient is as large
as the gradient (McCandlish et al., 2018, section 2.2). Every step gives unbiased estimates of both;
they are averaged over steps first and divided then. The mean of the steps' own ratios is no
estimate of anything: single |G|^2 are as often negative as not where the batch is small.

**The interval** is Fieller's (Journal of the Royal Statistical Society B 16, 1954): all B for which
mean(tau) - B mean(|G|^2) lies within Student's t of zero. It is as skewed as the ratio is, and
unbounded above exactly where |G|^2 is not significantly above zero. The covariance of the two means
is that of means over consecutive blocks of steps, which are nearly independent where blocks are
long enough (batch means: Alexopoulos and Seila, in Handbook of Simulation, 1998).

The ratio of means is nearly unbiased in its median. A jackknife takes away the bias of its mean
(2.5% in the hardest case of `benchmarks/noise_scale.py`) and puts its median 2.2% too low: none is
used.

**B_noise** = tr(H Sigma) / (G'HG) is the same ratio in the Hessian's metric, of the same kind of
series (`record.CurvatureSeries.noise`, `analysis/curvature.py`), and goes through the same code;
`signal` is then what stands in for |G|^2. Unlike |G|^2 it may truly be negative, and so may
tr(H Sigma): neither bounds a noise scale.

**Under drift** the estimate is of the window it is made from: sum(tau_s) / sum(|G_s|^2), which is
the mean of the steps' own noise scales weighted by |G_s|^2. A trend within the window is taken for
noise, so the interval is then too wide rather than too narrow. Where it matters, use `curve`.

Shapes: S steps, b blocks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, inf, isfinite, sqrt

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from batchlab.analysis.intervals import LEVEL, Interval
from batchlab.record import NoiseSeries

Floats = NDArray[np.float64]

MOST_BLOCKS = 10  # twenty are 8% narrower, and cover too little where steps are correlated
FEWEST_BLOCKS = 4  # as far as long correlations are followed
SQUARE = "|G|^2"  # B_simple's signal
BLOCK_TIMES = 5  # autocorrelation times in a block
WINDOW_TIMES = 5  # autocorrelation times over which correlations are summed


@dataclass(frozen=True, slots=True)
class NoiseScale:
    """A noise scale in examples, and the noise and signal it is the ratio of; `n` counts blocks.

    For B_simple these are tau and |G|^2, in the gradient's squared unit.

    `scale.high` is infinite where the data do not bound it, and `scale.effect` then no estimate.
    """

    scale: Interval
    trace: Interval
    square: Interval
    steps: int
    block: int  # steps

    @property
    def decided(self) -> bool:
        """Whether the signal is significantly above zero, and the noise not below."""
        return isfinite(self.scale.high) and self.trace.high >= 0


class Undecided(ValueError):  # noqa: N818, not an error
    """The data do not bound the noise scale; `estimate` says what was measured."""

    def __init__(self, estimate: NoiseScale, signal: str = SQUARE) -> None:
        scale, square, trace = estimate.scale, estimate.square, estimate.trace
        if square.high < 0 or trace.high < 0:
            what, told = (signal, square) if square.high < 0 else ("the noise", trace)
            reason = f"{what} is below zero ({_ends(told)}): there is no noise scale at this point"
        else:
            reason = (
                f"{estimate.steps} steps do not tell {signal} from zero ({_ends(square)}): the "
                f"noise scale is {scale.low:.3g} examples or more; measure more steps or larger "
                f"batches"
            )
        super().__init__(reason)
        self.estimate = estimate


@dataclass(frozen=True, slots=True)
class Window:
    """Steps `first` to `last`, both included, counted within the series from 0."""

    first: int
    last: int
    estimate: NoiseScale


def noise_scale(series: NoiseSeries, block: int | None = None, signal: str = SQUARE) -> NoiseScale:
    """The scale with its 95% interval; raises `Undecided` where the data do not bound it.

    `signal` is what the error calls the denominator. `block` and what else is raised: `estimate`.
    """
    told = estimate(series, block)
    if not told.decided:
        raise Undecided(told, signal)
    return told


def estimate(series: NoiseSeries, block: int | None = None) -> NoiseScale:
    """As `noise_scale`, but what is not decided comes back with an interval unbounded above.

    Steps weigh by their examples: the last batch of an epoch may be short. Blocks are of `block`
    steps: 1 where steps are known to be independent (weights that do not move). Without it they are
    as long as `block_length` says of tau - B |G|^2 and of |G|^2, the longer of both.
    Raises `ValueError` where there are no steps, the three series differ in length, a value is not
    finite or a step has no examples.
    """
    tau_S, square_S, weight_S = _checked(series)
    sums = np.array([weight_S @ tau_S, weight_S @ square_S]) / weight_S.sum()
    tau, square = sums.tolist()
    if len(tau_S) == 1:
        single = (Interval(tau, -inf, inf, 1), Interval(square, -inf, inf, 1))
        return NoiseScale(Interval(_ratio(tau, square), 0.0, inf, 1), *single, 1, 1)
    # Of small changes in the two means the ratio takes tau - B |G|^2, scaled.
    along_S = square * tau_S - tau * square_S
    if block is None:
        block = max(block_length(along_S), block_length(square_S))
    blocks = max(2, len(tau_S) // block)
    covariance = _covariance(np.stack([tau_S, square_S]), weight_S, blocks)
    quantile = float(stats.t.ppf(0.5 + LEVEL / 2, blocks - 1))
    tau_half, square_half = (quantile * np.sqrt(np.diag(covariance))).tolist()
    low, high = _fieller(tau, square, covariance * quantile**2)
    return NoiseScale(
        Interval(_ratio(tau, square), low, high, blocks),
        Interval(tau, tau - tau_half, tau + tau_half, blocks),
        Interval(square, square - square_half, square + square_half, blocks),
        len(tau_S),
        block,
    )


def noise_scales(series: Mapping[str, NoiseSeries]) -> dict[str, NoiseScale]:
    """`estimate` of every layer and of the total, under their names; look at `decided` of each."""
    return {name: estimate(one) for name, one in series.items()}


def curve(series: NoiseSeries, windows: int) -> list[Window]:
    """The noise scale along training: `estimate` in that many windows of as equal length as can be.

    Each interval is of its own window; those of a slow process are not independent. Raises
    `ValueError` where a window has fewer than two steps, or `estimate` does.
    """
    steps = len(series.trace_S)
    if windows < 1 or steps < 2 * windows:
        raise ValueError(f"{windows} windows need {2 * max(windows, 1)} steps, not {steps}")
    edges = np.linspace(0, steps, windows + 1).round().astype(int).tolist()
    return [
        Window(a, b - 1, estimate(NoiseSeries(*(v[a:b] for v in series))))
        for a, b in pairwise(edges)
    ]


def block_length(values_S: Floats) -> int:
    """Steps a block: long enough for the series' own autocorrelation, in 4 to 10 blocks.

    Five integrated autocorrelation times, and no less than a tenth of the series; at most a
    quarter of it, where an even longer correlation can't be measured anyway and the interval covers
    too little. `benchmarks/noise_scale.py` shows the coverage of it.
    """
    steps = len(values_S)
    wanted = max(steps / MOST_BLOCKS, BLOCK_TIMES * autocorrelation_time(values_S))
    return max(1, min(ceil(wanted), steps // FEWEST_BLOCKS))


def autocorrelation_time(values_S: Floats) -> float:
    """1 + 2 sum of autocorrelations, in steps; 1 for independent values, never below.

    Summed up to the first lag that is five times the sum so far (Sokal, Monte Carlo Methods in
    Statistical Mechanics, 1996, section 3): further out there is only noise.
    """
    v = values_S - values_S.mean()
    power = np.abs(np.fft.rfft(v, 2 * len(v))) ** 2
    covariance_S = np.fft.irfft(power)[: len(v)]
    if covariance_S[0] <= 0:
        return 1.0
    time_S = 2 * np.cumsum(covariance_S / covariance_S[0]) - 1
    enough = np.arange(len(v)) >= WINDOW_TIMES * time_S
    return max(1.0, float(time_S[np.argmax(enough)] if enough.any() else time_S[-1]))


def _ends(interval: Interval) -> str:
    return f"{interval.effect:.3g} [{interval.low:.3g}, {interval.high:.3g}]"


def _covariance(values_2S: Floats, weight_S: Floats, blocks: int) -> Floats:
    """Of the two weighted means, from their means over consecutive blocks (2, 2)."""
    starts = np.linspace(0, len(weight_S), blocks + 1).round().astype(int)[:-1]
    weight_b = np.add.reduceat(weight_S, starts)
    sum_2b = np.add.reduceat(values_2S * weight_S, starts, axis=1)
    total = weight_b.sum()
    # Weight times deviation of each block's mean from the whole: the influence of the block.
    off_2b = sum_2b - weight_b * (sum_2b.sum(axis=1, keepdims=True) / total)
    covariance: Floats = off_2b @ off_2b.T / total**2 * blocks / (blocks - 1)
    return covariance


def _fieller(tau: float, square: float, margin_22: Floats) -> tuple[float, float]:
    """All B >= 0 with (tau - B square)^2 <= (1, -B) margin (1, -B)^T, as an interval."""
    tau_tau, tau_square, square_square = margin_22[0, 0], margin_22[0, 1], margin_22[1, 1]
    # |G|^2 can't be negative: for the lower end a negative estimate is zero.
    g = max(square, 0.0)
    a = g * g - square_square
    half = tau * g - tau_square
    c = tau * tau - tau_tau
    root = sqrt(max(half * half - a * c, 0.0))
    if a > 0:
        return max((half - root) / a, 0.0), max((half + root) / a, 0.0)
    # Unbounded above; from B = 0 on where tau is not significantly above zero either.
    if c <= 0 or tau <= 0:
        return 0.0, inf
    return float(c / (half + root)) if half + root > 0 else 0.0, inf


def _ratio(tau: float, square: float) -> float:
    """B_simple; infinite where the estimate of |G|^2 is not above zero, never negative."""
    return max(tau, 0.0) / square if square > 0 else inf


def _checked(series: NoiseSeries) -> Sequence[Floats]:
    told = [np.asarray(v, dtype=np.float64) for v in series]
    if len({v.shape for v in told}) != 1 or told[0].ndim != 1 or not told[0].size:
        raise ValueError(f"three series of equal length are needed, not {[v.shape for v in told]}")
    if not all(np.isfinite(v).all() for v in told):
        raise ValueError("every step needs finite values")
    if (told[2] <= 0).any():
        raise ValueError("every step needs an example")
    return told
