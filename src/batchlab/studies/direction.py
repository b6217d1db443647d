"""Which way do passes go, do the samples compete, and in which layer?"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from batchlab.analysis.fits import exponent
from batchlab.analysis.intervals import Condition, Interval, mean_interval
from batchlab.record import ALL, PER_SAMPLE, Axis, Finding, Panel, Table
from batchlab.spec import Convention
from batchlab.studies.base import T_TEST, number
from batchlab.studies.results import Results, Start, Trials
from batchlab.studies.trials import HEADLINE, REGIME, TrialsStudy, by_size, counted

# The sum's direction is the mean's, but for the weight of a short last batch.
DIRECTED: Convention = "mean-stepping"
SAME = 0.9  # a cosine above this is one direction
GROWS = 0.01  # an exponent below this is no growth
HALF = 0.5
LEFT_OPEN = "left open"


class Direction(TrialsStudy):
    """The open questions on direction, competition between samples, and layers."""

    id = "direction"
    title = "Direction, competition and layers"
    question = (
        "Do passes at different batch sizes point the same way, do the gradients of single samples "
        "oppose each other, and is the last layer, which the article looks at, like the others?"
    )

    def findings(self, results: Results) -> list[Finding]:
        """Directions, competition, layers."""
        few, most = _ends(results)

        def apart(t: Trials) -> float:
            return float(t.pair(few, most).mean()) - SAME

        def nearer(t: Trials) -> float:
            of = t.values("cosine").mean(axis=(1, 2))
            return float(of[-1] - of[0])

        return [
            self._of_trials(
                results,
                "one-direction",
                "A pass one sample at a time adds up to the direction of one of all at once: their "
                f"cosine is above {SAME}.",
                f"cosine between the passes at {few} and at {most}, minus {SAME}, is above 0",
                apart,
            ),
            self._of_trials(
                results,
                "large-batch-full-direction",
                "The larger the batch, the nearer the direction of the pass to that of the full "
                "data's gradient.",
                f"cosine with the full-data gradient at {most} minus that at {few} is above 0",
                nearer,
            ),
            self._compete(results),
            self._competition_grows(results),
            self._layers(results, "norm-grows-in-every-layer", "norm", norm_exponent),
            self._layers(
                results, "spread-grows-in-every-layer", "relative spread", spread_exponent
            ),
        ]

    def _of_trials(
        self, results: Results, id: str, claim: str, says: str, effect: Callable[[Trials], float]
    ) -> Finding:
        conditions = [
            Condition(
                f"{regime}: {says}",
                mean_interval([effect(t) for t in self.measured(results, regime, DIRECTED)]),
                above=0,
            )
            for regime in self.arms(results.protocol)
        ]
        return self._open(results, id, claim, says, conditions, DIRECTED)

    def starts(self, results: Results, regime: str) -> list[Start]:
        """The samples' own gradients at one regime's checkpoints, an entry a seed."""
        found = (results.at_start(key, PER_SAMPLE) for key in self.keys(results, regime))
        return [start for start in found if start is not None]

    def _compete(self, results: Results) -> Finding:
        says = "the share of pairs with a negative inner product, minus a half, is above 0"
        conditions = [
            Condition(
                f"{regime}: {says}",
                mean_interval(
                    [
                        start.values("negative_share", ALL).mean() - HALF
                        for start in self.starts(results, regime)
                    ]
                ),
                above=0,
            )
            for regime in self.arms(results.protocol)
        ]
        claim = "The gradients of most pairs of samples oppose each other."
        return self._open(results, "samples-compete", claim, says, conditions)

    def _competition_grows(self, results: Results) -> Finding:
        says = "log10 of the simple noise scale late over early is above 0"
        scales = [
            [noise_scale(start, results.protocol.train_samples) for start in of]
            for of in (self.starts(results, regime) for regime in self.arms(results.protocol))
        ]
        early, late = (np.array(of) for of in scales)
        ratio = mean_interval(np.log10(late / early) if len(late) == len(early) else [])
        return self._open(
            results,
            "competition-grows",
            "The samples compete more late in training than early: the noise scale grows.",
            says,
            [Condition(says, ratio, above=0)],
        )

    def _layers(
        self,
        results: Results,
        id: str,
        what: str,
        effect: Callable[[NDArray[np.int64], NDArray[np.float64]], float],
    ) -> Finding:
        conditions = []
        for regime in self.arms(results.protocol):
            measured = self.measured(results, regime, HEADLINE)
            for layer in measured[0].layers if measured else []:
                values = [effect(t.sizes, t.values("norm", layer)) for t in measured]
                says = f"{regime}, {layer}: the exponent of the {what} in B is above {GROWS}"
                conditions.append(Condition(says, mean_interval(values), above=GROWS))
        return self._open(
            results,
            id,
            f"In every layer the {what} of the summed gradient grows with the batch size.",
            f"exponent of the {what} in B",
            conditions or [Condition(what, mean_interval([]))],
            HEADLINE,
        )

    def _open(
        self,
        results: Results,
        id: str,
        claim: str,
        measure: str,
        conditions: Sequence[Condition],
        convention: Convention | None = None,
    ) -> Finding:
        return self.finding(
            results,
            id,
            conditions,
            measure=measure,
            article=LEFT_OPEN,
            test=T_TEST + "; all must hold",
            claim=claim,
            convention=convention,
        )

    def panels(self, results: Results) -> list[Panel]:
        """Cosines between sizes and with the full gradient, between samples, and layers."""
        regimes = {r: self.measured(results, r, DIRECTED) for r in self.arms(results.protocol)}
        if not all(regimes.values()):
            return []
        summed = {r: self.measured(results, r, HEADLINE) for r in regimes}
        return [
            *(_between_sizes(trials, regime) for regime, trials in regimes.items()),
            _with_full(regimes),
            _between_samples({r: self.starts(results, r) for r in regimes}),
            *(_norm_by_layer(trials, regime) for regime, trials in summed.items()),
            *(_spread_by_layer(trials, regime) for regime, trials in summed.items()),
        ]

    def tables(self, results: Results) -> list[Table]:
        """What the samples' own gradients say, by regime and layer."""
        columns = {
            "diversity": "n x diversity",
            "negative_share": "negative pairs",
            "mean_cosine": "mean cosine",
            "min_cosine": "least cosine",
            "min_inner_product": "least inner product",
        }
        rows = []
        for regime in self.arms(results.protocol):
            starts = self.starts(results, regime)
            for layer in starts[0].layers if starts else []:
                told = [_over_seeds(starts, name, layer) for name in columns]
                scale = mean_interval(
                    [noise_scale(s, results.protocol.train_samples, layer) for s in starts]
                )
                cells = [number(interval) for interval in (*told, scale)]
                rows.append((regime, layer, *cells, str(len(starts))))
        p = results.protocol
        return [
            Table(
                title="How the samples' own gradients agree",
                columns=("Regime", "Layer", *columns.values(), "simple noise scale", "n"),
                rows=tuple(rows),
                caption=(
                    f"At the checkpoint, over {p.detailed} draws of {p.trial_samples:,} samples; "
                    "mean ± half of the 95% interval over n seeds. A layer's gradient is that of "
                    "its weights and biases. n x diversity of a draw is one plus its plain noise "
                    "scale, exactly; the last column corrects that for the draw's finite size."
                ),
            )
        ]

    def notes(self, results: Results) -> list[str]:
        """What is measured on which draws."""
        p = results.protocol
        return [
            "What the article calls competition is measured here on single samples: gradient "
            "diversity (Yin et al., 2018), gradient confusion, which is the least inner product "
            "between two samples' gradients (Sankararaman et al., 2020), and the noise scale "
            "tr(covariance) / |mean gradient|^2 (McCandlish et al., 2018).",
            f"Every layer, the cosines between batch sizes and the samples' own gradients are "
            f"measured in the first {p.detailed} of {p.draws:,} draws.",
        ]


def noise_scale(start: Start, population: int, layer: str = ALL) -> float:
    """tr(Sigma) / |G|^2, both pooled over draws before dividing.

    The estimate of |G|^2 from a draw without replacement is low by tr(Sigma) / N.
    """
    trace = start.values("noise_trace", layer).mean()
    return float(trace / (start.values("gradient_square", layer).mean() + trace / population))


def norm_exponent(sizes: NDArray[np.int64], norms_ZDO: NDArray[np.float64]) -> float:
    """p of mean norm ~ B^p."""
    return exponent(sizes, norms_ZDO.mean(axis=(1, 2)))


def spread_exponent(sizes: NDArray[np.int64], norms_ZDO: NDArray[np.float64]) -> float:
    """Exponent in B of the norm's standard deviation over its mean."""
    return exponent(sizes, _relative(norms_ZDO))


def _relative(norms_ZDO: NDArray[np.float64]) -> NDArray[np.float64]:
    flat = norms_ZDO.reshape(len(norms_ZDO), -1)
    spread: NDArray[np.float64] = flat.std(axis=1, ddof=1) / flat.mean(axis=1)
    return spread


def _over_seeds(starts: Sequence[Start], name: str, layer: str) -> Interval:
    return mean_interval([start.values(name, layer).mean() for start in starts])


def _ends(results: Results) -> tuple[int, int]:
    sizes = results.protocol.trial_batch_sizes
    return min(sizes), max(sizes)


def _between_sizes(trials: Sequence[Trials], regime: str) -> Panel:
    sizes = [int(b) for b in trials[0].sizes]
    rows = []
    for a in sizes:
        for b in sizes:
            cosine = 1.0 if a == b else float(np.mean([t.pair(a, b).mean() for t in trials]))
            rows.append((str(a), str(b), cosine, f"{cosine:.2f}"))
    return Panel(
        id=f"direction-sizes-{regime}",
        title=f"Cosine between passes at two batch sizes, {regime}",
        mark="cells",
        frame=pd.DataFrame(rows, columns=["one", "other", "cosine", "text"]),
        x=Axis("one", "Batch size"),
        y=Axis("other", "Batch size"),
        series=Axis("cosine", "Cosine"),
        text="text",
        caption=(
            "Mean-stepping, last layer, the same samples in the same order. Means over n = "
            f"{trials[0].pair(sizes[0], sizes[-1]).size} passes from each of {len(trials)} seeds' "
            "checkpoints."
        ),
    )


def _with_full(regimes: Mapping[str, Sequence[Trials]]) -> Panel:
    rows = [
        (int(b), regime, value)
        for regime, trials in regimes.items()
        for one in trials
        for b, value in zip(one.sizes, one.values("cosine").mean(axis=(1, 2)), strict=True)
    ]
    return by_size(
        rows,
        "direction-full",
        "Cosine of a pass with the full data's gradient",
        "Mean cosine",
        f"Mean-stepping, last layer. Mean and range over seeds. {counted(regimes)}",
        "regime",
    )


def _between_samples(starts: Mapping[str, Sequence[Start]]) -> Panel:
    rows = []
    for regime, of in starts.items():
        bins = pd.concat([start.bins for start in of if start.bins is not None])
        total = bins.groupby(["low", "high"], as_index=False)["frequency"].sum()
        share = total["frequency"] / total["frequency"].sum() / (total["high"] - total["low"])
        middle = (total["low"] + total["high"]) / 2
        rows += [(m, regime, s) for m, s in zip(middle, share, strict=True)]
    return Panel(
        id="direction-samples",
        title="Cosine between two samples' gradients",
        mark="line",
        frame=pd.DataFrame(rows, columns=["cosine", "regime", "density"]),
        x=Axis("cosine", "Cosine of the gradients of two samples, all layers"),
        y=Axis("density", "Density of pairs", log=True),
        series=REGIME,
        caption=(
            "At the checkpoint; pairs of samples within a draw, in the detailed draws of n = "
            f"{max(len(of) for of in starts.values())} seeds."
        ),
    )


def _norm_by_layer(trials: Sequence[Trials], regime: str) -> Panel:
    rows = []
    for layer in trials[0].layers:
        for one in trials:
            means = one.values("norm", layer).mean(axis=(1, 2))
            rows += [(int(b), layer, v) for b, v in zip(one.sizes, means / means[0], strict=True)]
    return by_size(
        rows,
        f"direction-norm-layers-{regime}",
        f"Mean norm by layer, {regime}",
        "Mean norm over that at the smallest batch size",
        "Sum-stepping, weight matrices from input (0) to output; the detailed draws. Mean and "
        f"range over n = {len(trials)} seeds.",
        "layer",
        log=True,
    )


def _spread_by_layer(trials: Sequence[Trials], regime: str) -> Panel:
    rows = [
        (int(b), layer, v)
        for layer in trials[0].layers
        for one in trials
        for b, v in zip(one.sizes, _relative(one.values("norm", layer)), strict=True)
    ]
    return by_size(
        rows,
        f"direction-spread-layers-{regime}",
        f"Relative spread by layer, {regime}",
        "Standard deviation over mean of the norm",
        "Sum-stepping, weight matrices from input (0) to output; the detailed draws. Mean and "
        f"range over n = {len(trials)} seeds.",
        "layer",
        log=True,
    )
