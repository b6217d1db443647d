"""Why does the norm of a pass spread as it does? Its law in B, its causes, its theory."""

from functools import cache
from math import nan
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from batchlab.analysis import curves, first_order
from batchlab.analysis.intervals import Condition, mean_interval
from batchlab.analysis.variance import Shares
from batchlab.record import FIRST_ORDER, Finding, Panel, Table
from batchlab.spec import Convention
from batchlab.studies import spread_panels
from batchlab.studies.base import T_TEST, number
from batchlab.studies.results import Results
from batchlab.studies.spread_panels import QUANTITIES, of_norms
from batchlab.studies.trials import HEADLINE, TrialsStudy

# At frozen weights the law in B is an identity, and needs no fit.
MOVING: tuple[Convention, ...] = ("sum-stepping", "mean-stepping", "sum-last", "mean-last")
HALF = 0.5
WITHIN_MEAN, WITHIN_STD = 0.05, 0.25  # relative errors at which a prediction still is one
NOT_OF_THE_ARTICLE = "left open"


class Law(NamedTuple):
    """How well each family describes a quantity's dependence on B, for each of S seeds."""

    errors: dict[str, NDArray[np.float64]]  # S: rms log error of the batch sizes left out
    best: str


class Spread(TrialsStudy):
    """The open questions on the norm's mean and spread."""

    id = "spread"
    title = "Why the norm spreads"
    question = (
        "Which function of the batch size are the mean and the standard deviation of a pass's "
        "gradient norm, and where does the spread come from: which samples, in which order?"
    )

    def findings(self, results: Results) -> list[Finding]:
        """Laws in B by convention, then causes and theory under the headline's."""
        told = [
            self._law(results, regime, name, convention)
            for regime in self.arms(results.protocol)
            for name in QUANTITIES
            for convention in MOVING
        ]
        told += [self._mostly_draw(results), self._draw_grows(results)]
        return told + [self._theory(results, name) for name in QUANTITIES]

    def law(self, results: Results, regime: str, name: str, convention: str) -> Law:
        """Cross-validated errors of every family, seed by seed."""
        scores = [
            _scores(tuple(t.sizes.tolist()), tuple(of_norms(t, name).tolist()))
            for t in self.measured(results, regime, convention)
        ]
        errors = {family: np.array([s[family] for s in scores]) for family in curves.FAMILIES}
        means = {family: float(np.mean(e)) if len(e) else nan for family, e in errors.items()}
        return Law(errors, curves.best(means) if scores else "")

    def _law(self, results: Results, regime: str, name: str, convention: Convention) -> Finding:
        law = self.law(results, regime, name, convention)
        others = {
            f: mean_interval(e - law.errors["power"]) for f, e in law.errors.items() if f != "power"
        }
        conditions = [
            Condition(
                f"cross-validated rms log error of {family} minus that of a power is above 0",
                gap,
                above=0,
            )
            for family, gap in others.items()
        ]
        closest = min(others, key=lambda f: others[f].effect if others[f].n else 0)
        return self.finding(
            results,
            f"{name}-is-a-power-{regime}",
            conditions,
            effect=others[closest],
            measure=f"cross-validated rms log error of the best other ({closest}) minus a power's",
            article="a square root" if name == "mean" else NOT_OF_THE_ARTICLE,
            test=T_TEST + "; leave one batch size out",
            claim=(
                f"The norm's {QUANTITIES[name]} is a power of the batch size ({regime}): better "
                "described so than by a constant, an affine function of its root, or saturation."
            ),
            convention=convention,
        )

    def shares(self, results: Results, regime: str) -> list[dict[int, Shares]]:
        """Shares of the norm's variance by batch size, one entry a seed."""
        return [t.shares for t in self.measured_crossed(results, regime, HEADLINE)]

    def _mostly_draw(self, results: Results) -> Finding:
        sizes = results.protocol.crossed_batch_sizes[:-1]  # one batch has no order
        conditions = [
            Condition(
                f"{regime}: the draw's share at {size} minus a half is above 0",
                mean_interval([of[size].draw.effect - HALF for of in self.shares(results, regime)]),
                above=0,
            )
            for regime in self.arms(results.protocol)
            for size in sizes
        ]
        return self.finding(
            results,
            "draw-makes-the-spread",
            conditions,
            measure=conditions[0].says,
            article=NOT_OF_THE_ARTICLE,
            test=T_TEST + "; two-way crossed components of variance",
            claim=(
                "Which samples are drawn, and not their order, makes most of the variance of a "
                "pass's norm, at every batch size."
            ),
            convention=HEADLINE,
        )

    def _draw_grows(self, results: Results) -> Finding:
        few, *_, most, _ = results.protocol.crossed_batch_sizes
        says = f"the draw's share at {most} minus that at {few} is above 0"
        conditions = [
            Condition(
                f"{regime}: {says}",
                mean_interval(
                    [
                        of[most].draw.effect - of[few].draw.effect
                        for of in self.shares(results, regime)
                    ]
                ),
                above=0,
            )
            for regime in self.arms(results.protocol)
        ]
        return self.finding(
            results,
            "draw-share-grows",
            conditions,
            measure=says,
            article="with large batches the norm depends more on the draw",
            test=T_TEST + "; two-way crossed components of variance",
            claim="The larger the batch, the more of the norm's variance is the draw's.",
            convention=HEADLINE,
        )

    def predicted(self, results: Results, regime: str, *, frozen: bool) -> list[pd.DataFrame]:
        """First-order mean and std of the summed gradient's norm by batch size, a frame a seed."""
        p = results.protocol
        frames = []
        for key in self.keys(results, regime):
            start = results.at_start(key, FIRST_ORDER)
            if start is None:
                continue
            moments = first_order.Moments(
                **{name: float(start.values(name).mean()) for name in start.names}
            )
            rate = 0.0 if frozen else p.learning_rate
            rows = []
            for size in sorted(p.trial_batch_sizes):
                told = first_order.predict(moments, size, p.trial_samples, rate, p.train_samples)
                rows.append((size, size * told.mean, size * told.std))
            frames.append(pd.DataFrame(rows, columns=["batch_size", *QUANTITIES]))
        return frames

    def _theory(self, results: Results, name: str) -> Finding:
        size = sorted(results.protocol.trial_batch_sizes)[-2]
        within = WITHIN_MEAN if name == "mean" else WITHIN_STD
        says = f"predicted over measured {QUANTITIES[name]} at {size}, minus 1, is within {within}"
        conditions = []
        for regime in self.arms(results.protocol):
            pairs = zip(
                self.predicted(results, regime, frozen=False),
                self.measured(results, regime, HEADLINE),
                strict=True,
            )
            errors = [
                float(frame.set_index("batch_size")[name][size])
                / of_norms(t, name)[list(t.sizes).index(size)]
                - 1
                for frame, t in pairs
            ]
            conditions.append(
                Condition(f"{regime}: {says}", mean_interval(errors), -within, within)
            )
        return self.finding(
            results,
            f"first-order-{name}",
            conditions,
            measure=says,
            article="no theory",
            test=T_TEST,
            claim=(
                f"First-order theory in the rate predicts the norm's {QUANTITIES[name]} where the "
                f"pass takes two steps, to {within:.0%}."
            ),
            convention=HEADLINE,
        )

    def panels(self, results: Results) -> list[Panel]:
        """Laws, shares and theory, by regime."""
        regimes = {r: self.measured(results, r, HEADLINE) for r in self.arms(results.protocol)}
        if not all(regimes.values()):
            return []
        drawn = [
            spread_panels.laws(regimes[regime], regime, name)
            for regime in regimes
            for name in QUANTITIES
        ]
        drawn += [spread_panels.parts(self.shares(results, regime), regime) for regime in regimes]
        for regime, trials in regimes.items():
            first, frozen = (
                self.predicted(results, regime, frozen=frozen) for frozen in (False, True)
            )
            drawn += [
                spread_panels.theory(trials, first, frozen, regime, name) for name in QUANTITIES
            ]
        return drawn

    def tables(self, results: Results) -> list[Table]:
        """Cross-validated errors and the best curve; shares of the variance."""
        laws, parts = [], []
        for regime in self.arms(results.protocol):
            for convention in MOVING:
                for name in QUANTITIES:
                    law = self.law(results, regime, name, convention)
                    trials = self.measured(results, regime, convention)
                    if not trials:
                        continue
                    pooled = np.mean([of_norms(t, name) for t in trials], axis=0)
                    cells = [number(mean_interval(law.errors[f])) for f in curves.FAMILIES]
                    fitted = str(curves.fit(law.best, trials[0].sizes, pooled))
                    row = (convention, regime, QUANTITIES[name], *cells, law.best, fitted)
                    laws.append((*row, str(len(trials))))
            for size in results.protocol.crossed_batch_sizes:
                of = [told[size] for told in self.shares(results, regime)]
                cells = [
                    f"{number(mean_interval([getattr(s, part).effect for s in of]))}"
                    for part in ("draw", "order", "rest")
                ]
                own = f"{of[0].draw.low:.2f} to {of[0].draw.high:.2f}" if of else "–"
                parts.append((regime, str(size), *cells, own, str(len(of))))
        count = results.protocol.crossed
        return [
            Table(
                title="Which function of the batch size",
                columns=(
                    *("Convention", "Regime", "Quantity"),
                    *(f"error of {family}" for family in curves.FAMILIES),
                    *("best", "its fit to the mean over seeds", "n"),
                ),
                rows=tuple(laws),
                caption=(
                    "Root mean square of the log error at the batch sizes left out in turn, mean ± "
                    "half of the 95% interval over n seeds."
                ),
            ),
            Table(
                title="Where the variance of the norm comes from",
                columns=(
                    *("Regime", "Batch size", "draw", "order", "order within the draw"),
                    *("draw, 95% interval of seed 0 by jackknife", "n"),
                ),
                rows=tuple(parts),
                caption=(
                    f"Sum-stepping. Shares of the variance over {count} draws crossed with {count} "
                    "orders: mean ± half of the 95% interval over n seeds."
                ),
            ),
        ]

    def notes(self, results: Results) -> list[str]:
        """How the design and the theory are to be read."""
        p = results.protocol
        return [
            f"Of each seed's draws the first {p.crossed} are passed in {p.crossed} orders each, "
            "the same permutations of places for every draw. The same samples in many orders, "
            "many samples in one order, and both: the two-way analysis of variance gives each its "
            "share. Since a draw's places are random, an order by itself means nothing, and its "
            "share is near zero by symmetry; what an order does to its own samples is the third.",
            "The theory is first order in the learning rate: from the mean gradient, its "
            "covariance and the curvature along it, all measured at the checkpoint in "
            f"{p.detailed} draws, it predicts mean and standard deviation without a fit, and ends "
            "where the first-order change is no longer small. What it says of frozen weights is "
            "shown beside it: the difference is the effect of stepping.",
        ]


@cache
def _scores(sizes: tuple[int, ...], values: tuple[float, ...]) -> dict[str, float]:
    """Findings and tables ask for the same fits."""
    return curves.cross_validate(sizes, values)
