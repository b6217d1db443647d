"""What a sweep says: a row a batch size, the trade-off through them, and the size of least time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite, log, nan
from statistics import median
from typing import Any

import pandas as pd

from batchlab.analysis import trade_off
from batchlab.analysis.intervals import Interval, exponential, mean_interval
from batchlab.analysis.trade_off import TradeOff
from batchlab.documents import plain
from batchlab.spec import UserError
from batchlab.sweep.protocol import Protocol
from batchlab.sweep.rows import by_rate
from batchlab.sweep.search import Trial, best, edge


@dataclass(frozen=True, slots=True)
class Row:
    """One batch size: geometric means over seeds, with Student's t interval of the logarithms.

    Where a seed did not reach the target, the effect is the median, inf for each that did not, and
    the interval has no upper end. `rate` is None where it is not known; `edge` says where nothing
    beyond the best rate was tried.
    """

    batch_size: int
    rate: float | None
    edge: str
    steps: Interval
    samples: Interval
    seconds: Interval
    reached: int
    unreached: int
    diverged: int
    trials: int
    trials_diverged: int

    def cells(self) -> dict[str, Any]:
        """For people: a value with the ends of its 95% interval."""
        rate = "" if self.rate is None else f"{self.rate:.3g}{' !' * bool(self.edge)}"
        return {
            "batch size": self.batch_size,
            "rate": rate,
            "steps": _told(self.steps),
            "samples": _told(self.samples),
            "seconds": _told(self.seconds),
            "reached": f"{self.reached}/{self.reached + self.unreached + self.diverged}",
            "trials": f"{self.trials} ({self.trials_diverged} diverged)",
        }

    def json(self) -> dict[str, Any]:
        """Strict: an end that is not finite is None."""
        return {
            "batch_size": self.batch_size,
            "learning_rate": self.rate,
            "edge": self.edge or None,
            **{n: plain(getattr(self, n)) for n in ("steps", "samples", "seconds")},
            "seeds": self.reached + self.unreached + self.diverged,
            "reached": self.reached,
            "censored": self.unreached,
            "diverged": self.diverged,
            "trials": self.trials,
            "trials_diverged": self.trials_diverged,
        }


@dataclass(frozen=True, slots=True)
class Result:
    """`trials`: what `analysis.steps` and `analysis.trade_off` take, a run a row.

    Batch sizes there are the mean ones, samples over steps: where a size is no small part of the
    data, a pass's short last batch makes it less. `fit` is None where the runs do not suffice,
    `unfit` then says why.
    """

    said: str
    rows: tuple[Row, ...]
    trials: pd.DataFrame
    fit: TradeOff | None
    unfit: str

    @property
    def fastest(self) -> tuple[int, ...]:
        """The size of least seconds, then those whose intervals reach below its upper end."""
        timed = [r for r in self.rows if r.reached and isfinite(r.seconds.effect)]
        if not timed:
            return ()
        first = min(timed, key=lambda r: r.seconds.effect)
        rest = [r for r in timed if r is not first and r.seconds.low < first.seconds.high]
        return (first.batch_size, *(r.batch_size for r in rest))

    def lines(self) -> list[str]:
        """What is said below the table."""
        told = []
        if any(r.edge for r in self.rows):
            told.append("! nothing was tried beyond this rate: it may not be the best; more trials")
        if self.fit is None:
            told.append(f"no trade-off: {self.unfit}")
        else:
            told += [
                f"critical batch size {self.fit.critical} trials (95%)",
                f"least steps {self.fit.least_steps}; least samples {self.fit.least_samples}",
                str(self.fit.misfit),
            ]
        if self.fastest:
            first, *rest = self.fastest
            also = f"; not told apart: {', '.join(map(str, rest))}" if rest else ""
            told.append(f"least time at batch size {first}{also}")
        return told

    def json(self) -> dict[str, Any]:
        """Strict: what is not finite is None."""
        fit = None
        if self.fit is not None:
            misfit = self.fit.misfit
            told = {n: getattr(misfit, n) for n in ("verdict", "p", "largest")}
            fit = {n: getattr(self.fit, n) for n in ("critical", "least_steps", "least_samples")}
            fit = plain(fit | {"misfit": told | {"at": misfit.size}})
        return {
            "rows": [row.json() for row in self.rows],
            "fit": fit,
            "unfit": self.unfit or None,
            "fastest": list(self.fastest),
        }


def result(
    said: str, protocol: Protocol, measured: Mapping[int, Sequence[dict[str, Any]]]
) -> Result:
    """Of the journals' rows by batch size; sizes without a repetition are left out."""
    rows, trials = [], []
    for size, kept in sorted(measured.items()):
        repeats = [row for row in kept if row["kind"] == "repeat"]
        tried = by_rate(kept, protocol.target, protocol.better)
        if repeats:
            rows.append(_row(size, repeats, tried))
            mean = sum(r["samples"] for r in repeats) / sum(r["steps"] for r in repeats)
            trials += [(mean, r["seed"], r["steps"], r["outcome"]) for r in repeats]
    frame = pd.DataFrame(trials, columns=["batch_size", "seed", "steps", "outcome"])
    return curve(said, tuple(rows), frame)


def curve(said: str, rows: tuple[Row, ...], frame: pd.DataFrame) -> Result:
    """The fits through the trials of `frame`."""
    fit, unfit = None, ""
    try:
        fit = trade_off.fit(frame)
    except UserError as error:
        unfit = str(error)
    return Result(said, rows, frame, fit, unfit)


def _row(size: int, repeats: Sequence[dict[str, Any]], tried: Sequence[Trial]) -> Row:
    outcomes = [row["outcome"] for row in repeats]
    rate = repeats[0]["rate"]
    return Row(
        batch_size=size,
        rate=rate,
        edge=edge(tried) if tried and best(tried).rate == rate else "",
        steps=_over_seeds(repeats, "steps"),
        samples=_over_seeds(repeats, "samples"),
        seconds=_over_seeds(repeats, "seconds"),
        reached=outcomes.count("reached"),
        unreached=outcomes.count("unreached"),
        diverged=outcomes.count("diverged"),
        trials=len(tried),
        trials_diverged=sum(t.outcome == "diverged" for t in tried),
    )


def _over_seeds(repeats: Sequence[dict[str, Any]], name: str) -> Interval:
    values = [row[name] for row in repeats if row["outcome"] == "reached"]
    if len(values) == len(repeats):
        return mean_interval([log(v) for v in values]).map(exponential)
    if not values:
        return Interval(inf, max(row[name] for row in repeats), inf, 0)
    short = len(repeats) - len(values)
    return Interval(median([*values, *[inf] * short]), min(values), inf, len(values))


def _told(interval: Interval) -> str:
    """Rounded; more than the least tried where nothing was reached; nothing where unknown."""
    if interval.effect == inf:
        return f"> {interval.low:.4g}"
    if interval.effect != interval.effect:
        return ""
    ends = "" if interval.n < 2 else f" [{interval.low:.3g}, {interval.high:.3g}]"
    return f"{interval.effect:.4g}{ends}"


UNKNOWN = Interval(nan, -inf, inf, 0)
