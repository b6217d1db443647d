"""Both noise scales at a point, and the learning rate that goes with them, with intervals.

From `CurvatureSeries`, draws of independent examples at given weights: B_simple = tr(D Sigma) /
(G'DG), B_noise = tr(DHD Sigma) / (G'DHDG) and the best rate of one step at batch size B,

    e_opt(B) = G'DG / (G'DHDG + tr(DHD Sigma) / B) = e_max / (1 + B_noise / B)

(McCandlish et al., 2018, section 2.2; `probes/curvature.py` derives it for an optimizer's metric
D). All are ratios of means over draws, with Fieller's interval (`analysis/noise_scale.py`). The
rate's denominator is the better known the smaller B is: it may be decided where B_noise is not.

e_opt is best for the very next step, greedily. With momentum m, compare rate / (1 - m) to it. A
rate above 2 e_opt raises the expected loss, to second order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import numpy as np

from batchlab.analysis.intervals import Interval
from batchlab.analysis.noise_scale import NoiseScale, estimate, noise_scale
from batchlab.record import CurvatureSeries, NoiseSeries
from batchlab.spec import UserError

SIGNAL = "G'HG"  # in the optimizer's metric, G'DHDG


@dataclass(frozen=True, slots=True, eq=False)  # arrays have no one truth value to compare by
class Curvature:
    """B_simple and B_noise side by side; look at `decided` of each."""

    simple: NoiseScale
    noise: NoiseScale
    series: CurvatureSeries
    block: int | None

    def critical(self) -> Interval:
        """B_noise in examples; raises `Undecided`, with the estimate, where it is not bounded."""
        return noise_scale(self.series.noise, self.block, SIGNAL).scale

    def rate(self, batch_size: float = inf) -> Interval:
        """e_opt(B), and e_max without a batch size; unbounded above where not decided."""
        if not batch_size > 0:
            raise UserError(f"batch size: a positive number is needed, not {batch_size:g}")
        s = self.series
        below_S = s.curved_square_S + s.curved_trace_S / batch_size
        return estimate(NoiseSeries(s.square_S, below_S, s.examples_S), self.block).scale


def curvature(series: CurvatureSeries, block: int | None = 1) -> Curvature:
    """The scales of independent draws; `block`, and what is raised, as for `estimate`."""
    return Curvature(estimate(series.simple, block), estimate(series.noise, block), series, block)


def joined(parts: Sequence[CurvatureSeries]) -> CurvatureSeries:
    """Several checkpoints' draws one after another: all is then of sums over the checkpoints.

    What lies between checkpoints is taken for noise: intervals are too wide rather than too narrow.
    Raises `ValueError` where there are no parts.
    """
    return CurvatureSeries._make(np.concatenate([p[k] for p in parts]) for k in range(5))
