"""What the studies of gradient trials share: the two checkpoints, and the trials from there."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from batchlab.record import Axis, Panel
from batchlab.spec import CONVENTIONS, Convention, Protocol, Spec, TrialsSpec
from batchlab.studies.base import Study
from batchlab.studies.results import Arm, Results, Trials, arm, phase

# The reading shown first. Only a stepping pass can make the relative spread depend on B, and of
# the stepping sums only the sum of batch sums can grow with B; the page shows all six.
HEADLINE: Convention = "sum-stepping"
HEADLINE_FIRST: tuple[Convention, ...] = (HEADLINE, *(c for c in CONVENTIONS if c != HEADLINE))
SIZE = Axis("batch_size", "Batch size", log=True)
REGIME = Axis("regime", "Regime")


class TrialsStudy(Study):
    """A study of gradient trials at an early and a late checkpoint of the large batch.

    All such studies ask for the same trials, which are run once.
    """

    def arms(self, protocol: Protocol) -> dict[str, Arm]:
        """The two checkpoints, both of the large batch."""
        return {
            "early": arm(phase(protocol, protocol.large, protocol.early_epochs)),
            "late": arm(phase(protocol, protocol.large)),
        }

    def trials(self, protocol: Protocol, regime: str, seed: int) -> TrialsSpec:
        """The trials of one regime, started from one seed's checkpoint: every draw in one order."""
        return TrialsSpec(
            start=self.arms(protocol)[regime].spec(protocol, seed),
            batch_sizes=protocol.trial_batch_sizes,
            samples=protocol.trial_samples,
            draws=protocol.draws,
            learning_rate=protocol.learning_rate,
            detailed=protocol.detailed,
        )

    def crossed(self, protocol: Protocol, regime: str, seed: int) -> TrialsSpec:
        """The trials that tell the draw from the order: every draw in every order."""
        return TrialsSpec(
            start=self.arms(protocol)[regime].spec(protocol, seed),
            batch_sizes=protocol.crossed_batch_sizes,
            samples=protocol.trial_samples,
            draws=protocol.crossed,
            orders=protocol.crossed,
            learning_rate=protocol.learning_rate,
        )

    def specs(self, protocol: Protocol, seeds: int) -> list[Spec]:
        """The runs to both checkpoints, and the trials from there."""
        trials: list[Spec] = [
            make(protocol, regime, seed)
            for seed in range(seeds)
            for regime in self.arms(protocol)
            for make in (self.trials, self.crossed)
        ]
        return [*super().specs(protocol, seeds), *trials]

    def keys(self, results: Results, regime: str) -> list[str]:
        """The keys of one regime's trials, seed by seed."""
        return [self.trials(results.protocol, regime, seed).key for seed in results.seeds]

    def measured(self, results: Results, regime: str, convention: str) -> list[Trials]:
        """The trials of one regime under one convention, one entry a seed that has them."""
        keys = self.keys(results, regime)
        return [t for key in keys if (t := results.trials(key, convention)) is not None]

    def measured_crossed(self, results: Results, regime: str, convention: str) -> list[Trials]:
        """The same of the crossed trials."""
        keys = [self.crossed(results.protocol, regime, seed).key for seed in results.seeds]
        return [t for key in keys if (t := results.trials(key, convention)) is not None]


def powers_of_two(sizes: NDArray[np.int64]) -> list[int]:
    """Those of the batch sizes: enough to see a trend, few enough to tell apart."""
    return [int(b) for b in sizes if b & (b - 1) == 0]


def counted(groups: Mapping[Any, Sequence[Trials]]) -> str:
    """How many passes a figure shows, in a sentence."""
    trials = next(iter(groups.values()))
    passes = trials[0].norms[0].size
    return f"n = {passes} passes at each batch size from each of {len(trials)} seeds' checkpoints."


def by_size(
    rows: Sequence[tuple[int, str, float]],
    id: str,
    title: str,
    y: str,
    caption: str,
    series: str,
    *,
    log: bool = False,
) -> Panel:
    """Lines of a quantity against the batch size, mean and range over seeds.

    `rows` are (batch size, series, value), one for every seed.
    """
    frame = pd.DataFrame(rows, columns=["batch_size", series, "value"])
    grouped = frame.groupby(["batch_size", series], sort=False)["value"]
    band = grouped.agg(mean="mean", low="min", high="max").reset_index()
    return Panel(
        id=id,
        title=title,
        mark="line",
        frame=band,
        x=SIZE,
        y=Axis("mean", y, log=log),
        series=Axis(series, series.capitalize()),
        low="low",
        high="high",
        caption=caption,
    )
