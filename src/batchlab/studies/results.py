"""The records of a study's runs, looked up by what was asked for.

Shapes: S seeds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from typing import NamedTuple, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from batchlab.analysis.intervals import Interval, exponential, mean_interval, mean_intervals
from batchlab.analysis.variance import Shares, shares
from batchlab.record import ALL, WEIGHTS
from batchlab.spec import CONVENTIONS, Cadence, Optimizer, Phase, Protocol, TrainSpec

SGD = Optimizer()
MOST_EVALUATIONS = 60  # the longest of the article's curves


@dataclass(frozen=True, slots=True)
class Arm:
    """One schedule of a study, run with every seed."""

    label: str
    schedule: tuple[Phase, ...]
    cadence: Cadence

    def spec(self, protocol: Protocol, seed: int) -> TrainSpec:
        """This arm's run with one seed."""
        return protocol.spec(self.schedule, seed, self.cadence)


def phase(
    protocol: Protocol,
    batch_size: int,
    epochs: int | None = None,
    *,
    rate: float | None = None,
    optimizer: Optimizer = SGD,
) -> Phase:
    """A phase at the protocol's learning rate and epochs where none are given."""
    return Phase(
        batch_size=batch_size,
        learning_rate=rate or protocol.learning_rate,
        epochs=epochs or protocol.epochs,
        optimizer=optimizer,
    )


def arm(*phases: Phase, label: str | None = None) -> Arm:
    """An arm measured after every epoch, or more seldom where it has more than 60 of them.

    One rule for all studies: the same schedule is then the same run, whichever study asks.
    """
    epochs = sum(p.epochs or 0 for p in phases)
    text = label or ", then ".join(p.label() for p in phases)
    return Arm(text, phases, Cadence.doubling(ceil(max(epochs, 1) / MOST_EVALUATIONS)))


class Curve(NamedTuple):
    """One quantity along one run; the arrays are of equal length, steps increasing."""

    step: NDArray[np.int64]
    epoch: NDArray[np.float64]
    value: NDArray[np.float64]


class Part(NamedTuple):
    """One quantity of one layer in every pass, and the batch sizes that it was measured at."""

    sizes_Z: NDArray[np.int64]
    value_ZDO: NDArray[np.float64]

    @classmethod
    def of(cls, rows: pd.DataFrame) -> Self:
        """From rows in the order of their batch sizes, draws and orders, none of which lacks."""
        sizes, draws, orders = (np.unique(rows[name]) for name in ("batch_size", "draw", "order"))
        values = rows["value"].to_numpy(dtype=np.float64)
        return cls(sizes, values.reshape(len(sizes), len(draws), len(orders)))


class Trials:
    """Gradient trials from one checkpoint under one convention.

    Shapes: Z batch sizes, D draws, O orders of each.
    """

    def __init__(self, rows: pd.DataFrame, bins: pd.DataFrame) -> None:
        """From the trial records and the histogram of one spec under one convention.

        `bins` has batch_size, low, high and frequency: the last layer's values, all passes.
        """
        self.bins = bins
        ordered = rows.sort_values(["batch_size", "draw", "order"])
        self._parts = {
            (str(name), str(layer)): Part.of(part)
            for (name, layer), part in ordered.groupby(["name", "layer"], sort=False, observed=True)
        }
        self.sizes: NDArray[np.int64] = np.sort(rows["batch_size"].unique())  # Z
        self.layers = list(rows["layer"].unique())  # from input to output
        self.norms = self.values("norm")  # Euclidean norm of the pass's gradient (Z, D, O)
        self.kurtoses = self.values("kurtosis")  # of its raw values (Z, D, O)
        self.means: NDArray[np.float64] = self.norms.mean(axis=(1, 2))  # over all passes (Z)

    def values(self, name: str, layer: str | None = None) -> NDArray[np.float64]:
        """A quantity (Z, D, O) of one layer, the last where none is named.

        Other layers are measured in the first draws alone, so that their D is smaller.
        """
        return self._parts[name, layer or self.layers[-1]].value_ZDO

    @property
    def deviations(self) -> NDArray[np.float64]:
        """Standard deviation of the norm over all passes (Z); there must be two."""
        spread: NDArray[np.float64] = self.norms.std(axis=(1, 2), ddof=1)
        return spread

    @cached_property
    def shares(self) -> dict[int, Shares]:
        """Of crossed trials, shares of the norm's variance by batch size."""
        return {int(b): shares(of_DO) for b, of_DO in zip(self.sizes, self.norms, strict=True)}

    def pair(self, one: int, other: int) -> NDArray[np.float64]:
        """Cosine between the passes at two batch sizes, one entry a detailed pass; else empty."""
        for a, b in ((one, other), (other, one)):
            part = self._parts.get((f"cosine to {b}", self.layers[-1]))
            if part is not None and a in part.sizes_Z:
                cosines: NDArray[np.float64] = part.value_ZDO[part.sizes_Z == a].ravel()
                return cosines
        return np.empty(0)


class Start:
    """What the detailed draws of one trials spec measured at the starting weights.

    Two kinds: the samples' own gradients, and the moments of first-order theory.
    """

    def __init__(self, rows: pd.DataFrame, bins: pd.DataFrame | None) -> None:
        """From a row a draw, layer and name, and the histogram that comes with it, if any."""
        self.bins = bins
        self._values = {
            (str(name), str(layer)): part.to_numpy(dtype=np.float64)
            for (name, layer), part in rows.groupby(["name", "layer"], sort=False, observed=True)[
                "value"
            ]
        }
        self.names = list(rows["name"].unique())  # the quantities measured
        self.layers = list(rows["layer"].unique())  # from input to output

    def values(self, name: str, layer: str | None = None) -> NDArray[np.float64]:
        """A quantity in every draw (D), of the layer named or of the only one."""
        return self._values.get((name, layer or self.layers[-1]), np.empty(0))


class Results:
    """The records of a study's runs, looked up by arm and seed."""

    def __init__(
        self,
        protocol: Protocol,
        seeds: int,
        status: Mapping[str, str],
        records: pd.DataFrame,
        trials: pd.DataFrame,
        bins: pd.DataFrame,
    ) -> None:
        """`status` maps keys of stored runs to `finished` or `diverged`; frames as stored."""
        self.protocol, self.seeds = protocol, range(seeds)
        counted = dict(list(bins.groupby(["key", "convention"], sort=False, observed=True)))
        self._trials: dict[tuple[str, str], Trials] = {}
        self._starts: dict[tuple[str, str], Start] = {}
        for (key, convention), rows in trials.groupby(
            ["key", "convention"], sort=False, observed=True
        ):
            of = (str(key), str(convention))
            if convention in CONVENTIONS:
                self._trials[of] = Trials(rows, counted[key, convention])
            else:
                self._starts[of] = Start(rows, counted.get((key, convention)))
        self._status = status
        self._curves = {
            (str(key), str(name), str(layer)): Curve(
                part["step"].to_numpy(), part["epoch"].to_numpy(), part["value"].to_numpy()
            )
            for (key, name, layer), part in records.groupby(
                ["key", "name", "layer"], sort=False, observed=True
            )
        }
        for key in status:
            train, test = (self._curves.get((key, f"{s}_accuracy", ALL)) for s in ("train", "test"))
            if train is not None and test is not None:
                self._curves[key, "gap", ALL] = train._replace(value=train.value - test.value)

    def curve(self, arm: Arm, seed: int, name: str, layer: str = ALL) -> Curve | None:
        """A quantity along one run; `None` where it was not measured.

        `gap` is the generalisation gap: train minus test accuracy.
        """
        return self._curves.get((arm.spec(self.protocol, seed).key, name, layer))

    def final(self, arm: Arm, name: str, layer: str = ALL) -> NDArray[np.float64]:
        """The last value for every seed (S); nan where the run diverged."""
        values = []
        for seed in self.seeds:
            curve = self.curve(arm, seed, name, layer)
            ended = self._status.get(arm.spec(self.protocol, seed).key) == "finished"
            values.append(curve.value[-1] if ended and curve is not None else np.nan)
        return np.array(values)

    def diverged(self, arm: Arm) -> int:
        """How many of the arm's runs diverged."""
        keys = [arm.spec(self.protocol, seed).key for seed in self.seeds]
        return sum(self._status.get(key) == "diverged" for key in keys)

    def layers(self) -> list[str]:
        """The weight matrices, from input to output."""
        names = [k[2] for k in self._curves if k[1] == "cosine" and k[2] != WEIGHTS]
        return list(dict.fromkeys(names))

    def trials(self, key: str, convention: str) -> Trials | None:
        """The trials of one spec under one convention; `None` where there are none."""
        return self._trials.get((key, convention))

    def at_start(self, key: str, kind: str) -> "Start | None":
        """What the detailed draws of one spec measured at the starting weights, by its kind."""
        return self._starts.get((key, kind))

    def band(self, arms: Sequence[Arm], name: str, layer: str = ALL) -> pd.DataFrame:
        """Mean and 95% interval over seeds at every measured point of every arm.

        Columns: arm, step, epoch, mean, low, high, n. Points that a diverged run never reached
        have a smaller n.
        """
        bands = []
        for one in arms:
            curves = [self.curve(one, seed, name, layer) for seed in self.seeds]
            there = [c for c in curves if c is not None]
            if not there:
                continue
            longest = max(there, key=lambda c: len(c.step))
            # Runs of one arm are measured at the same steps, as far as they got.
            values_SP = np.full((len(there), len(longest.step)), np.nan)
            for row, curve in zip(values_SP, there, strict=True):
                row[: len(curve.value)] = curve.value
            mean, low, high, n = mean_intervals(values_SP)
            band = {"arm": one.label, "step": longest.step, "epoch": longest.epoch}
            bands.append(pd.DataFrame(band | {"mean": mean, "low": low, "high": high, "n": n}))
        return pd.concat(bands, ignore_index=True)

    def difference(self, a: Arm, b: Arm, name: str, layer: str = ALL) -> Interval:
        """Final value in `a` minus that in `b`, paired by seed."""
        return mean_interval(self.final(a, name, layer) - self.final(b, name, layer))

    def ratio(self, a: Arm, b: Arm, name: str, layer: str = ALL) -> Interval:
        """Final value in `a` over that in `b`, paired by seed: geometric mean of the ratios."""
        logs = np.log(self.final(a, name, layer)) - np.log(self.final(b, name, layer))
        return mean_interval(logs).map(exponential)
