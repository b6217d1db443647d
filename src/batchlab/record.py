"""What is measured and what is concluded: records, trial records, findings, panels, tables."""

from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Verdict = Literal["supported", "refuted", "inconclusive"]
Status = Literal["finished", "diverged"]
Mark = Literal["line", "point", "ridge", "cells"]

WEIGHTS = "weights"  # all parameters of two or more dimensions, as one vector
BIASES = "biases"  # all others
ALL = "all"  # a quantity of the whole model, not of a layer
# Trial records that are no pass's, but of a draw's samples at the starting weights:
PER_SAMPLE = "per-sample"  # on their own gradients
FIRST_ORDER = "first-order"  # the moments from which first-order theory predicts a pass


class Reading(NamedTuple):
    """One number a probe gives: what, of which layer, how much."""

    name: str
    layer: str
    value: float


class Record(NamedTuple):
    """A measurement on a training run. `epoch` is samples seen over training samples."""

    step: int
    epoch: float
    samples: int
    name: str
    layer: str
    value: float


class NoiseSeries(NamedTuple):
    """Of each of S steps, unbiased estimates of tr(Sigma) and of |G|^2, and the examples seen.

    Sigma is the covariance of one example's gradient and G its mean. Single values are noisy, and
    those of |G|^2 often negative: only their means over steps are worth dividing.
    """

    trace_S: NDArray[np.float64]
    square_S: NDArray[np.float64]
    examples_S: NDArray[np.float64]


class CurvatureSeries(NamedTuple):
    """Of each of S draws at given weights, unbiased estimates, and the examples drawn.

    D is the optimizer's diagonal metric (1 for SGD), H the Hessian: trace = tr(D Sigma),
    square = G'DG, curved_trace = tr(DHD Sigma), curved_square = G'DHDG.
    """

    trace_S: NDArray[np.float64]
    square_S: NDArray[np.float64]
    curved_trace_S: NDArray[np.float64]
    curved_square_S: NDArray[np.float64]
    examples_S: NDArray[np.float64]

    @property
    def simple(self) -> NoiseSeries:
        """What B_simple is the ratio of."""
        return NoiseSeries(self.trace_S, self.square_S, self.examples_S)

    @property
    def noise(self) -> NoiseSeries:
        """What B_noise is the ratio of: noise and signal weighed by the curvature."""
        return NoiseSeries(self.curved_trace_S, self.curved_square_S, self.examples_S)


class TrialRecord(NamedTuple):
    """A measurement of one pass of one trial: the summed gradient's norm, for example."""

    batch_size: int
    draw: int
    order: int
    convention: str
    layer: str
    name: str
    value: float


class BinRecord(NamedTuple):
    """Raw gradient values of all trials in one bin, `low` <= value < `high`."""

    batch_size: int
    convention: str
    layer: str
    low: float
    high: float
    frequency: int


@dataclass(frozen=True, slots=True)
class Finding:
    """A claim and what the records say of it.

    `effect` with its 95% interval `low` to `high` is the quantity named by `measure`; `n` counts
    the independent repetitions the interval is over. `convention` is the reading of the article
    it holds under, `None` where there is only one. `reason` spells out every condition tested.
    Where `cannot` says why no measurement could support the claim, it was measured all the same.
    """

    id: str
    study: str
    claim: str
    verdict: Verdict
    effect: float | None
    low: float | None
    high: float | None
    n: int
    convention: str | None
    workload: str
    measure: str
    test: str
    reason: str
    article: str  # what the article says, in numbers where it has them
    number: int | None  # in the article's list of twelve, from 1
    cannot: str | None = None  # the identity by which it can't hold under its convention, if any

    def json(self) -> dict[str, Any]:
        """A JSON object; the keys are the field names."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Axis:
    """A column of a panel's frame and how to show it."""

    field: str
    title: str
    log: bool = False
    zero: bool = False
    format: str = ""  # d3-format, empty for the default


@dataclass(frozen=True, slots=True)
class Rule:
    """A labelled reference line across a panel: the article's number, say."""

    label: str
    x: float | None = None
    y: float | None = None


@dataclass(frozen=True, slots=True)
class Panel:
    """A figure, declared: a tidy frame and what stands on which axis.

    Marks: `line` (x sorted within a series, `low` and `high` columns drawn as a band), `point`
    (`low` and `high` as error bars), `ridge` (one density a series, `y` its height scaled to 1,
    stacked in the frame's order of series), `cells` (a table of coloured cells: `x` and `y`
    ordinal, `text` the column with what stands in the cell, `series` the number it is coloured
    by). `ordered` series, such as batch sizes, get a sequential palette.
    """

    id: str
    title: str
    mark: Mark
    frame: pd.DataFrame
    x: Axis
    y: Axis
    caption: str
    series: Axis | None = None
    ordered: bool = False
    low: str | None = None
    high: str | None = None
    text: str | None = None
    rules: tuple[Rule, ...] = ()


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of ready text under named columns, with a caption that says n."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str


@dataclass(frozen=True, slots=True)
class Section:
    """All that the page shows of one study."""

    id: str
    title: str
    question: str
    notes: tuple[str, ...]
    findings: tuple[Finding, ...]
    panels: tuple[Panel, ...]
    tables: tuple[Table, ...]
