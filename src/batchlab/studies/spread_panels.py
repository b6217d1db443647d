"""The spread study's figures: laws in the batch size, shares of the variance, theory."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from batchlab.analysis import curves
from batchlab.analysis.variance import Shares
from batchlab.record import Axis, Panel
from batchlab.studies.results import Trials
from batchlab.studies.trials import SIZE, counted

QUANTITIES = {"mean": "mean", "std": "standard deviation"}
_ENDS = ("effect", "low", "high")


def of_norms(t: Trials, name: str) -> NDArray[np.float64]:
    """Mean or standard deviation of the norm over all passes, by batch size."""
    return t.means if name == "mean" else t.deviations


def laws(trials: Sequence[Trials], regime: str, name: str) -> Panel:
    """A quantity against B, and every family fitted to it."""
    sizes = trials[0].sizes
    pooled = np.mean([of_norms(t, name) for t in trials], axis=0)
    grid = np.geomspace(sizes[0], sizes[-1], 60)
    rows = [(float(b), "measured", v) for b, v in zip(sizes, pooled, strict=True)]
    for family in curves.FAMILIES[1:]:
        values = curves.fit(family, sizes, pooled)(grid)
        rows += [(b, family, v) for b, v in zip(grid, values, strict=True)]
    return Panel(
        id=f"spread-law-{name}-{regime}",
        title=f"{QUANTITIES[name].capitalize()} of the norm and its fits, {regime}",
        mark="line",
        frame=pd.DataFrame(rows, columns=["batch_size", "curve", "value"]),
        x=SIZE,
        y=Axis("value", QUANTITIES[name].capitalize(), log=True),
        series=Axis("curve", "Curve"),
        caption=(
            "Sum-stepping. Least squares on logarithms, to the mean over seeds. "
            f"{counted({regime: trials})}"
        ),
    )


def parts(of: Sequence[dict[int, Shares]], regime: str) -> Panel:
    """Shares of the variance against B."""
    names = {"draw": "draw", "order": "order", "rest": "order within the draw"}
    rows = []
    for size in of[0]:
        for part, label in names.items():
            told = [getattr(one[size], part) for one in of]
            ends = [float(np.mean([getattr(i, end) for i in told])) for end in _ENDS]
            rows.append((size, label, *ends))
    return Panel(
        id=f"spread-shares-{regime}",
        title=f"Where the variance of the norm comes from, {regime}",
        mark="line",
        frame=pd.DataFrame(rows, columns=["batch_size", "part", *_ENDS]),
        x=SIZE,
        y=Axis("effect", "Share of the variance", zero=True),
        series=Axis("part", "Part"),
        low="low",
        high="high",
        caption=(
            f"Sum-stepping. Means over n = {len(of)} seeds of the shares and of the ends of their "
            "own 95% intervals by jackknife."
        ),
    )


def theory(
    trials: Sequence[Trials],
    first: Sequence[pd.DataFrame],
    frozen: Sequence[pd.DataFrame],
    regime: str,
    name: str,
) -> Panel:
    """Measured beside predicted, `first` order in the rate and at `frozen` weights."""
    rows = [
        (int(b), "measured", v)
        for b, v in zip(
            trials[0].sizes, np.mean([of_norms(t, name) for t in trials], axis=0), strict=True
        )
    ]
    for label, frames in {"first order": first, "frozen weights": frozen}.items():
        mean = pd.concat(frames).groupby("batch_size")[name].mean()
        rows += [(int(b), label, v) for b, v in mean.items() if np.isfinite(v)]  # type: ignore[call-overload]
    return Panel(
        id=f"spread-theory-{name}-{regime}",
        title=f"{QUANTITIES[name].capitalize()} of the norm and its theory, {regime}",
        mark="line",
        frame=pd.DataFrame(rows, columns=["batch_size", "curve", "value"]),
        x=SIZE,
        y=Axis("value", QUANTITIES[name].capitalize(), log=True),
        series=Axis("curve", "Curve"),
        caption=(
            "Sum-stepping. Predicted from moments at the checkpoint, nothing fitted; the line ends "
            f"where the first order has no meaning. {counted({regime: trials})}"
        ),
    )
