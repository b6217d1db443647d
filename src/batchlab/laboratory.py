"""The rooms wired together: what the command line and Python callers ask of the laboratory."""

import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from batchlab.analysis.fits import exponent
from batchlab.analysis.intervals import mean_interval
from batchlab.archive import Request, cover, findings, sections
from batchlab.backends import BACKENDS, check_backend
from batchlab.backends.base import Backend, Wanted
from batchlab.documents import plain
from batchlab.jobs import Site
from batchlab.listing import describe, runs_frame
from batchlab.runner import Costed, Progress, prepare, run_all
from batchlab.spec import Spec, TrainSpec, TrialsSpec, UserError
from batchlab.store.database import FILE, Store
from batchlab.studies.results import Trials

__all__ = [  # noqa: RUF022, what stands elsewhere and is asked for here
    "Request", "cover", "describe", "findings", "runs_frame", "sections",
    "Bench", "choose_backend", "open_store", "plan_json", "reproduce", "train_one",
    "trials_one",
]  # fmt: skip


def choose_backend(name: str, wanted: Wanted) -> Backend:
    """A backend by name; raises `UserError` where it has not what is wanted of it."""
    check_backend(name, wanted)
    return BACKENDS[name](wanted)


@contextmanager
def open_store(root: Path | None, *, look: bool = False) -> Iterator[Store]:
    """The store at `root`, or one that is gone afterwards where there is none.

    Only to `look` at it makes none where there is none, and changes nothing in one.
    """
    if root is not None and (not look or (root / FILE).exists()):
        with Store(root, create=not look) as store:
            yield store
    else:
        with tempfile.TemporaryDirectory() as gone, Store(Path(gone)) as store:
            yield store


@dataclass(frozen=True, slots=True)
class Bench:
    """Where work is done: a store, a backend, and who hears of it."""

    store: Store
    backend: Backend
    site: Site
    progress: Progress
    stopping: Callable[[], bool] = lambda: False

    def run(self, specs: Iterable[Spec]) -> int:
        """Run what the store lacks of the specs; how many runs that took."""
        return run_all(
            specs,
            self.store,
            self.backend,
            self.site,
            progress=self.progress,
            stopping=self.stopping,
        )

    def plan(self, specs: Iterable[Spec]) -> Costed:
        """What running them would come to; nothing is trained."""
        return prepare(specs, self.store, self.backend, self.site, self.progress.say)


def reproduce(request: Request, bench: Bench) -> int:
    """Run what the store lacks of the request; how many runs that took."""
    bench.store.ask(request.canonical())
    return bench.run(request.specs())


def plan_json(costed: Costed) -> dict[str, Any]:
    """The one document that a dry run prints."""
    return {"plan": costed.plan.json(costed.seconds, costed.costs)}


def train_one(spec: TrainSpec, bench: Bench) -> dict[str, Any]:
    """Train a spec, unless it is stored, and describe it."""
    bench.run([spec])
    return describe(bench.store, [spec.key])[0]


def trials_one(spec: TrialsSpec, bench: Bench) -> list[dict[str, Any]]:
    """Run gradient trials, unless they are stored; a row a batch size and convention.

    Raises `UserError` where the run that they start from diverged, or where raw gradients are to
    be kept of trials that are stored already.
    """
    store = bench.store
    stored = store.keys()
    if bench.site.tensors is not None and spec.key in stored:
        raise UserError(
            "--keep-tensors: these trials are in the store already, without their gradients; name "
            "another --store"
        )
    bench.run([spec])
    for start in store.runs([spec.start.key]):  # which a repair may have dropped
        if start.status == "diverged":
            raise UserError(
                f"--after: that run diverged at step {start.steps}; choose a lower learning rate"
            )
    frame, bins = store.trials([spec.key]), store.bins([spec.key])
    rows = []
    for convention in spec.conventions:
        trials = Trials(*(part[part["convention"] == convention] for part in (frame, bins)))
        rows += [
            row
            for layer in reversed(trials.layers)
            for row in _layer_rows(trials, convention, layer)
        ]
    return rows


def _layer_rows(trials: Trials, convention: str, layer: str) -> list[dict[str, Any]]:
    """The exponent and its interval are the convention's: over draws, at all batch sizes."""
    norms_ZDO = trials.values("norm", layer)
    kurtosis_Z = np.full(len(trials.sizes), np.nan)
    if layer == trials.layers[-1]:
        kurtosis_Z = trials.kurtoses.mean(axis=(1, 2))
    fitted = None
    if len(trials.sizes) > 1:
        by_draw = norms_ZDO.mean(axis=2).T
        fitted = mean_interval([exponent(trials.sizes, norms) for norms in by_draw])
    rows = [
        {
            "batch_size": int(size),
            "convention": convention,
            "layer": layer,
            "norm_mean": norms.mean(),
            "norm_std": norms.std(ddof=1) if norms.size > 1 else None,
            "kurtosis_mean": kurtosis,
            "exponent": fitted and fitted.effect,
            "exponent_low": fitted and fitted.low,
            "exponent_high": fitted and fitted.high,
            "n": int(norms.size),
        }
        for size, norms, kurtosis in zip(trials.sizes, norms_ZDO, kurtosis_Z, strict=True)
    ]
    told: list[dict[str, Any]] = plain(rows)
    return told
