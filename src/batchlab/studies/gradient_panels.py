"""The gradient study's figures: statistics here, drawing elsewhere."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from batchlab.record import Axis, Panel
from batchlab.spec import Convention
from batchlab.studies.results import Trials
from batchlab.studies.trials import REGIME, SIZE, by_size, counted, powers_of_two

RIDGE_POINTS = 120


def norm(regimes: Mapping[str, Sequence[Trials]]) -> Panel:
    """Mean norm against B with one standard deviation, as the article's first figure."""
    rows = []
    for regime, trials in regimes.items():
        means = np.mean([t.means for t in trials], axis=0)
        stds = np.sqrt(np.mean([t.deviations**2 for t in trials], axis=0))
        rows += [(b, regime, m, s) for b, m, s in zip(trials[0].sizes, means, stds, strict=True)]
    frame = pd.DataFrame(rows, columns=["batch_size", "regime", "mean", "std"])
    return Panel(
        id="gradient-norm",
        title="Norm of the summed gradient",
        mark="point",
        frame=frame.assign(low=frame["mean"] - frame["std"], high=frame["mean"] + frame["std"]),
        x=SIZE,
        y=Axis("mean", "Mean norm", log=True),
        series=REGIME,
        low="low",
        high="high",
        caption=(
            "Sum-stepping. Bars: one standard deviation over passes from one checkpoint, root mean "
            f"square over seeds. {counted(regimes)}"
        ),
    )


def scaled_spread(regimes: Mapping[str, Sequence[Trials]]) -> Panel:
    """Standard deviation against B, every size scaled to the largest's mean."""
    rows = []
    for regime, trials in regimes.items():
        for one in trials:
            scaled = one.deviations * one.means[-1] / one.means
            rows += [(b, regime, s) for b, s in zip(one.sizes, scaled, strict=True)]
    return by_size(
        rows,
        "gradient-scaled-spread",
        "Spread of the norm at equal mean",
        "Standard deviation, scaled by the largest batch's mean over its own",
        f"Sum-stepping. {counted(regimes)} Mean and range over seeds.",
        "regime",
    )


def norm_by_convention(readings: Mapping[Convention, Sequence[Trials]], regime: str) -> Panel:
    """Mean norm over that at the smallest size: which readings grow, and which can't."""
    rows = []
    for convention, trials in readings.items():
        for one in trials:
            grown = one.means / one.means[0]
            rows += [(b, convention, g) for b, g in zip(one.sizes, grown, strict=True)]
    return by_size(
        rows,
        f"gradient-norm-conventions-{regime}",
        f"Mean norm under every reading, {regime}",
        "Mean norm over that at the smallest batch size",
        "Mean and range over seeds; the square root that the article reports would be a line "
        f"from 1 to 32 at 1,024. {counted(readings)}",
        "reading",
        log=True,
    )


def spread_by_convention(readings: Mapping[Convention, Sequence[Trials]], regime: str) -> Panel:
    """Standard deviation over mean against B, under every reading."""
    rows = []
    for convention, trials in readings.items():
        for one in trials:
            spread = one.deviations / one.means
            rows += [(b, convention, s) for b, s in zip(one.sizes, spread, strict=True)]
    return by_size(
        rows,
        f"gradient-spread-conventions-{regime}",
        f"Relative spread under every reading, {regime}",
        "Standard deviation over mean of the norm",
        f"Mean and range over seeds. {counted(readings)}",
        "reading",
        log=True,
    )


def norm_ridges(one: Trials, regime: str, *, scaled: bool) -> Panel:
    """The norm's distribution by batch size, raw or with every mean moved to the largest's."""
    norms = one.norms.reshape(len(one.sizes), -1)
    if scaled:
        norms = norms * (norms[-1].mean() / norms.mean(axis=1, keepdims=True))
    grid = np.linspace(norms.min(), norms.max(), RIDGE_POINTS)
    rows = []
    for size, values in zip(one.sizes, norms, strict=True):
        density = stats.gaussian_kde(values)(grid)
        near = np.abs(grid - values.mean()) < 6 * values.std() + (grid[1] - grid[0])
        height = density / density.max()
        rows += [(x, h, str(size)) for x, h in zip(grid[near], height[near], strict=True)]
    kind = "scaled to equal mean" if scaled else "raw"
    return Panel(
        id=f"gradient-norms-{regime}-{'scaled' if scaled else 'raw'}",
        title=f"Distribution of the norm, {kind}, {regime}",
        mark="ridge",
        frame=pd.DataFrame(rows, columns=["norm", "height", "batch_size"]),
        x=Axis("norm", f"Norm of the summed gradient, {kind}"),
        y=Axis("height", "Density, scaled to 1"),
        series=Axis("batch_size", "Batch size"),
        ordered=True,
        caption=(
            f"Sum-stepping, {regime} checkpoint of seed 0. Gaussian kernel density of "
            f"n = {norms.shape[1]} passes at each batch size."
        ),
    )


def values(trials: Sequence[Trials], regime: str) -> Panel:
    """How many raw gradient values fall at each abscissa: the tails."""
    bins = pd.concat([t.bins for t in trials])
    sizes = powers_of_two(trials[0].sizes)
    bins = bins[bins["batch_size"].isin(sizes) & (bins["high"] != bins["low"])]
    total = bins.groupby(["batch_size", "low", "high"], as_index=False)["frequency"].sum()
    # Bins have equal ratios, so that a count is over a wider stretch farther out: per unit it is
    # a density, which is what a histogram of equal bins shows.
    total["density"] = total["frequency"] / (total["high"] - total["low"])
    total["value"] = (total["low"] + total["high"]) / 2
    total = total[total["value"].abs() > total["value"].abs().max() * 1e-3]
    values_each = len(trials) * trials[0].norms[0].size
    return Panel(
        id=f"gradient-values-{regime}",
        title=f"Raw gradient values, {regime}",
        mark="line",
        frame=total.assign(size=total["batch_size"].astype(str)).sort_values(
            ["batch_size", "value"]
        ),
        x=Axis("value", "Gradient value"),
        y=Axis("density", "Values per unit", log=True),
        series=Axis("size", "Batch size"),
        ordered=True,
        caption=(
            f"Sum-stepping, {regime}. All weights of the last layer, n = {values_each} passes at "
            "each batch size, bins shared by all; not normalised. Values below a thousandth of the "
            "largest are left out."
        ),
    )


def kurtosis(regimes: Mapping[str, Sequence[Trials]]) -> Panel:
    """Kurtosis of the raw values against B: the shape, whatever the scale."""
    rows = []
    for regime, trials in regimes.items():
        for one in trials:
            means = np.nanmean(one.kurtoses, axis=(1, 2))
            rows += [(b, regime, k) for b, k in zip(one.sizes, means, strict=True)]
    return by_size(
        rows,
        "gradient-kurtosis",
        "Kurtosis of the raw gradient values",
        "Mean kurtosis of a pass (a normal has 3)",
        f"Sum-stepping. Mean and range over seeds. {counted(regimes)}",
        "regime",
    )
