"""Do samples of one batch compete? What a pass over 1,024 fresh samples adds up to."""

from collections.abc import Callable

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from batchlab.analysis.fits import exponent
from batchlab.analysis.intervals import DECIDES, Condition, exponential, mean_interval, together
from batchlab.analysis.variance import components
from batchlab.record import Finding, Panel, Table
from batchlab.spec import CONVENTIONS, Convention, Protocol
from batchlab.studies import article, gradient_panels
from batchlab.studies.base import PAIRED_RATIO, T_TEST, number
from batchlab.studies.results import Results, Trials
from batchlab.studies.trials import HEADLINE, HEADLINE_FIRST, TrialsStudy, powers_of_two

# The last step's samples are chosen by the order, not by the draw: no split of the spread there.
PASSES: tuple[Convention, ...] = tuple(c for c in CONVENTIONS if not c.endswith("last"))
# Under a frozen sum nothing depends on B but rounding; a trend must be larger than this to count.
NEGLIGIBLE = 0.01
# Identities: under these readings no measurement could support any of the claims.
CANNOT: dict[Convention, str] = {
    "mean-frozen": (
        "At frozen weights the sum of the batches' mean gradients is 1/B times one and the same "
        "sum, whatever the model: its norm falls, its relative spread and its shape stay."
    ),
    "sum-frozen": (
        "At frozen weights the sum of the batches' summed gradients is the same sum at every batch "
        "size, whatever the model."
    ),
}


class Gradient(TrialsStudy):
    """Gradient trials at an early and a late checkpoint, under every reading of the article."""

    id = "gradient"
    title = "Gradient competition"
    question = (
        "Over the same number of samples, do the gradients of large batches cancel, so that the "
        "model moves less than with small ones?"
    )

    def findings(self, results: Results) -> list[Finding]:
        """Every claim under every convention, the headline's first; both regimes must agree."""
        return [
            finding
            for make in (
                self._grows,
                self._root,
                self._earlier,
                self._spread,
                self._draw,
                self._tail,
                self._monotone,
                self._shape,
            )
            for convention in HEADLINE_FIRST
            if (finding := make(results, convention)) is not None
        ]

    def _conditions(
        self,
        results: Results,
        convention: Convention,
        says: str,
        effect: Callable[[Trials], float],
        above: float = -np.inf,
        below: float = np.inf,
        *,
        crossed: bool = False,
    ) -> list[Condition]:
        """The same demand on the early and on the late regime."""
        measured = self.measured_crossed if crossed else self.measured
        return [
            Condition(
                f"{regime}: {says}",
                mean_interval([effect(t) for t in measured(results, regime, convention)]),
                above,
                below,
            )
            for regime in self.arms(results.protocol)
        ]

    def _claim(
        self,
        results: Results,
        convention: Convention,
        id: str,
        conditions: list[Condition],
        measure: str,
        said: str,
        claim: str | None = None,
    ) -> Finding:
        conditions = together(conditions, len(results.seeds))
        # Of the two regimes, the one that decides; a further demand only where that decides.
        weaker = min(conditions, key=lambda c: (DECIDES.index(c.verdict), c.interval.low))
        if weaker in conditions[2:]:
            measure = weaker.says
        return self.finding(
            results,
            id,
            conditions,
            effect=weaker.interval,
            measure=f"{measure}; the weaker of early and late",
            article=said,
            claim=claim,
            convention=convention,
            test=T_TEST + "; early and late must both hold",
            cannot=CANNOT.get(convention),
        )

    def _grows(self, results: Results, convention: Convention) -> Finding:
        says = f"the exponent of the mean norm in B is above {NEGLIGIBLE}"
        conditions = self._conditions(results, convention, says, norm_exponent, above=NEGLIGIBLE)
        measure = "exponent p of mean norm ~ B^p"
        return self._claim(
            results, convention, "gradient-norm-grows", conditions, measure, "grows, p = 1/2"
        )

    def _root(self, results: Results, convention: Convention) -> Finding:
        p = article.NORM_EXPONENT
        says = f"the exponent of the mean norm in B is within 0.1 of {p}"
        conditions = self._conditions(results, convention, says, norm_exponent, p - 0.1, p + 0.1)
        return self._claim(
            results,
            convention,
            "norm-square-root",
            conditions,
            "exponent p of mean norm ~ B^p",
            "p = 1/2: the squared norm is linear in B",
            "The mean gradient norm grows as the square root of the batch size.",
        )

    def _earlier(self, results: Results, convention: Convention) -> Finding:
        early, late = (
            [results.trials(key, convention) for key in self.keys(results, regime)]
            for regime in self.arms(results.protocol)
        )
        least = [
            float(np.log(a.means / b.means).min())
            for a, b in zip(early, late, strict=True)
            if a is not None and b is not None
        ]
        measure = "mean norm, early over late, the least ratio of all batch sizes"
        return self.finding(
            results,
            "early-norm-larger",
            [Condition(f"{measure}, is above 1", mean_interval(least).map(exponential), above=1)],
            measure=measure,
            article="early above late, no number",
            claim="At every batch size the mean gradient norm is larger early than late.",
            convention=convention,
            test=PAIRED_RATIO,
        )

    def _spread(self, results: Results, convention: Convention) -> Finding:
        says = f"the exponent of std/mean of the norm in B is above {NEGLIGIBLE}"
        conditions = self._conditions(results, convention, says, spread_exponent, above=NEGLIGIBLE)
        measure = "exponent of the norm's std/mean in B"
        return self._claim(
            results, convention, "relative-spread-grows", conditions, measure, "grows, no number"
        )

    def _draw(self, results: Results, convention: Convention) -> Finding | None:
        if convention not in PASSES:
            return None

        def excess(t: Trials) -> float:
            return draw_spread(t, t.sizes.max()) - draw_spread(t, t.sizes.min())

        def strongly(t: Trials) -> float:
            return draw_spread(t, t.sizes.max()) - 2 * draw_spread(t, t.sizes.min())

        sizes = results.protocol.crossed_batch_sizes
        measure = f"spread by draw over mean norm, at {max(sizes)} minus at {min(sizes)}"
        conditions = self._conditions(
            results, convention, f"{measure}, is above 0", excess, 0, crossed=True
        )
        says = measure.replace(" minus at", " minus twice that at") + ", is above 0"
        conditions += self._conditions(results, convention, says, strongly, 0, crossed=True)
        return self._claim(
            results,
            convention,
            "norm-depends-on-draw",
            conditions,
            measure,
            "strongly with large, weakly with small batches; no number",
        )

    def _tail(self, results: Results, convention: Convention) -> Finding:
        few = _second(results.protocol)
        measure = f"log10 of how many more values lie in the tail at the largest B than at {few}"
        conditions = self._conditions(
            results, convention, f"{measure} is above {NEGLIGIBLE}", tail_decades, above=NEGLIGIBLE
        )
        return self._claim(
            results, convention, "heavier-tail", conditions, measure, "1e5 at 1024, 1e2 at 2: 3"
        )

    def _monotone(self, results: Results, convention: Convention) -> Finding:
        measure = "log10 of tail counts, each power of two over the one before, the least"
        conditions = self._conditions(
            results, convention, f"{measure}, is above 0", least_tail_gain, above=0
        )
        return self._claim(
            results,
            convention,
            "tail-grows-monotonically",
            conditions,
            measure,
            "monotonically",
            "From 2 on every doubling of the batch size makes the tail of gradient values heavier.",
        )

    def _shape(self, results: Results, convention: Convention) -> Finding:
        says = f"the exponent of the kurtosis in B is above {NEGLIGIBLE}"
        conditions = self._conditions(results, convention, says, shape_exponent, above=NEGLIGIBLE)
        return self._claim(
            results,
            convention,
            "heavier-shape",
            conditions,
            "exponent of the values' kurtosis in B",
            "not measured",
            "Whatever their scale, gradient values are heavier-tailed in shape for larger batches.",
        )

    def panels(self, results: Results) -> list[Panel]:
        """Norm, spread, distributions and tails."""
        every = {
            regime: {c: self.measured(results, regime, c) for c in CONVENTIONS}
            for regime in self.arms(results.protocol)
        }
        regimes = {regime: readings[HEADLINE] for regime, readings in every.items()}
        if not all(regimes.values()):
            return []
        return [
            gradient_panels.norm(regimes),
            gradient_panels.scaled_spread(regimes),
            *(gradient_panels.norm_by_convention(of, r) for r, of in every.items()),
            *(gradient_panels.spread_by_convention(of, r) for r, of in every.items()),
            *(
                gradient_panels.norm_ridges(trials[0], regime, scaled=scaled)
                for scaled in (False, True)
                for regime, trials in regimes.items()
            ),
            *(gradient_panels.values(trials, regime) for regime, trials in regimes.items()),
            gradient_panels.kurtosis(regimes),
        ]

    def tables(self, results: Results) -> list[Table]:
        """Exponents by convention and regime."""
        rows = []
        quantities = (norm_exponent, spread_exponent, tail_decades, shape_exponent)
        for convention in CONVENTIONS:
            for regime in self.arms(results.protocol):
                trials = self.measured(results, regime, convention)
                cells = [number(mean_interval([q(t) for t in trials])) for q in quantities]
                rows.append((convention, regime, *cells, str(len(trials))))
        return [
            Table(
                title="Under every reading",
                columns=(
                    "Convention",
                    "Regime",
                    "exponent of mean norm (article 1/2)",
                    "exponent of std/mean",
                    "tail, decades (article 3)",
                    "exponent of kurtosis",
                    "n",
                ),
                rows=tuple(rows),
                caption=(
                    "Mean ± half of the 95% interval over n seeds, each with "
                    f"{results.protocol.draws} passes at every batch size."
                ),
            )
        ]

    def notes(self, results: Results) -> list[str]:
        """The conventions, and what the numbers of samples imply."""
        p = results.protocol
        uneven = [b for b in p.trial_batch_sizes if p.trial_samples % b]
        share = p.trial_samples / p.train_samples
        notes = [
            "The article does not say whether a batch's gradient is the mean or the sum over its "
            "samples, whether the model steps during the pass, or whether the pass's gradients "
            "are added or only the last is kept. Each claim is therefore tested under six "
            "readings: mean or sum, with frozen weights (added), stepping by the mean gradient "
            "(added), or the last full batch of the stepping pass alone.",
            "With frozen weights the mean's sum falls as 1/B and the sum's does not depend on B, "
            "whatever the model: no measurement could find otherwise. Stepping, the rate times "
            "the mean's sum is the way the layer has gone.",
            f"Each seed's checkpoint has {p.draws:,} draws of {p.trial_samples:,} samples, the "
            "same at every batch size (common random numbers); what the draw adds to the spread is "
            f"from the first {p.crossed} of them, each passed in the same {p.crossed} orders.",
        ]
        if uneven:
            sizes = ", ".join(str(b) for b in uneven)
            notes.append(
                f"Batch sizes {sizes} do not divide {p.trial_samples:,}: their last batch is "
                "short, and counts as a batch of its own size."
            )
        if share > 0.1:
            notes.append(
                f"Draws are without replacement: {p.trial_samples:,} of {p.train_samples:,} "
                "samples are much of the data, so draws overlap and the spread between them is "
                f"about {np.sqrt(1 - share):.2f} of what it would be with unlimited data, at "
                "every batch size alike."
            )
        return notes


def norm_exponent(t: Trials) -> float:
    """p of mean norm ~ B^p, over all batch sizes."""
    return exponent(t.sizes, t.means)


def spread_exponent(t: Trials) -> float:
    """Exponent in B of the norm's standard deviation over its mean."""
    return exponent(t.sizes, relative_spread(t))


def relative_spread(t: Trials) -> NDArray[np.float64]:
    """Standard deviation over mean of the norm, over all passes, by batch size."""
    return t.deviations / t.means


def draw_spread(t: Trials, size: int) -> float:
    """Standard deviation of the norm that the draw adds, over its mean, at one batch size.

    From crossed trials: the draw's component of variance, at least 0, whatever the order.
    """
    norms_DO = t.norms[list(t.sizes).index(size)]
    return float(np.sqrt(max(0.0, components(norms_DO).draw)) / norms_DO.mean())


def tail_decades(t: Trials) -> float:
    """log10 of the count of large raw values at the largest B over that at the second smallest.

    Large: beyond the value that one in a thousand of all values, all batch sizes together,
    exceed (to the bin). One is added to each count, so that an empty tail has a logarithm.
    """
    sizes = np.sort(t.sizes)
    few, many = _tail_logs(t, [int(sizes[1]), int(sizes[-1])])
    return many - few


def least_tail_gain(t: Trials) -> float:
    """The least step of that logarithm from one power of two, from 2 on, to the next.

    Of those to a tail that has values in it, as between two empty ones there is nothing to
    compare; 0 where all are empty.
    """
    doublings = powers_of_two(np.sort(t.sizes[t.sizes > 1]))
    logs = np.array(_tail_logs(t, doublings))
    steps = np.diff(logs)[logs[1:] > 0]
    return float(steps.min()) if len(steps) else 0.0


def _tail_logs(t: Trials, sizes: list[int]) -> list[float]:
    of, frequency = (t.bins[name].to_numpy() for name in ("batch_size", "frequency"))
    beyond = _least(t.bins) >= tail_threshold(t.bins)
    return [float(np.log10(1 + int(frequency[beyond & (of == size)].sum()))) for size in sizes]


def tail_threshold(bins: pd.DataFrame) -> float:
    """The edge of a bin that at most one in a thousand of all values lie beyond, by size."""
    edges, place = np.unique(_least(bins), return_inverse=True)
    counts = np.zeros(len(edges), np.int64)
    np.add.at(counts, place, bins["frequency"].to_numpy())
    beyond = counts[::-1].cumsum() <= counts.sum() / 1000
    inside = edges[::-1][beyond]
    return float(inside.min() if len(inside) else edges[-1])


def shape_exponent(t: Trials) -> float:
    """Exponent in B of the mean kurtosis of a pass's raw values."""
    return exponent(t.sizes, np.nanmean(t.kurtoses, axis=(1, 2)))


def _least(bins: pd.DataFrame) -> NDArray[np.float64]:
    """The smallest absolute value in each bin; rounded, so that both signs have one edge."""
    edges_N2 = bins[["low", "high"]].to_numpy(dtype=np.float64)
    least_N: NDArray[np.float64] = np.abs(edges_N2).min(axis=1).round(12)
    return least_N


def _second(protocol: Protocol) -> int:
    return sorted(protocol.trial_batch_sizes)[1]
