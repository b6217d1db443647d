"""One noise scale for a whole run, from those along it.

A step at batch size B makes the share p = 1 / (1 + N/B) of the progress that a step without noise
would make, where N is the noise scale at that time (McCandlish et al., 2018). Where the run at B0
spends its steps evenly over times w with noise scales N_w, the steps at another size B are

    S(B) / S(B0) = mean_w (1 + N_w / B) / (1 + N_w / B0) = mean_w (p_w + (1 - p_w) B0 / B)

which is a hyperbola again, that of one noise scale

    N = B0 (1 / p - 1),    p = mean_w p_w.

So shares are averaged and not noise scales: one without bounds is a share of 0 and does no harm.
Batches much smaller than N_w make it the harmonic mean of the N_w, much larger ones the mean.

Shapes: W windows or places along a run.
"""

from collections.abc import Sequence
from math import inf, isnan, sqrt

from batchlab.analysis.intervals import Interval
from batchlab.spec import UserError


def pooled(noise: Sequence[Interval], batch_size: float) -> Interval:
    """N over a run at `batch_size`, of noise scales (W) at times that took equally many steps.

    The errors of the W are taken to be independent; n is their number. Raises `UserError` where
    there are none, or the batch size is not positive.
    """
    if not noise:
        raise UserError("noise scales: at least one along the run is needed")
    if not 0 < batch_size < inf:
        raise UserError(f"batch_size: a positive number is needed, not {batch_size:g}")
    # One without an estimate (no progress seen, nothing bounded) is half way.
    shares = [0.5 if isnan(n.effect) else share(n.effect, batch_size) for n in noise]
    lows = [share(n.high, batch_size) for n in noise]
    highs = [share(n.low, batch_size) for n in noise]
    mean = sum(shares) / len(noise)
    below = sqrt(sum((p - low) ** 2 for p, low in zip(shares, lows, strict=True))) / len(noise)
    above = sqrt(sum((high - p) ** 2 for p, high in zip(shares, highs, strict=True))) / len(noise)
    ends = (mean, min(mean + above, 1.0), max(mean - below, 0.0))
    effect, low, high = (scale(p, batch_size) for p in ends)
    return Interval(effect, low, high, len(noise))


def share(noise: float, batch_size: float) -> float:
    """p = 1 / (1 + N/B), of 0 to 1."""
    return 1 / (1 + noise / batch_size)


def scale(part: float, batch_size: float) -> float:
    """N = B (1/p - 1): `share` the other way round; a share of 0 is an infinite noise scale."""
    return batch_size * (1 / part - 1) if part > 0 else inf
