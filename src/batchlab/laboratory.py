"""The rooms wired together: what the command line and Python callers ask of the laboratory."""

import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import ValidationError

from batchlab import __version__
from batchlab.analysis.fits import exponent
from batchlab.analysis.intervals import mean_interval
from batchlab.backends import BACKENDS
from batchlab.backends.base import Backend, cores
from batchlab.jobs import Site
from batchlab.record import ALL, BIASES, WEIGHTS, Finding, Section
from batchlab.runner import Costed, Progress, prepare, run_all
from batchlab.spec import (
    Frozen,
    Protocol,
    Spec,
    TrainSpec,
    TrialsSpec,
    UserError,
    one_line,
    one_of,
    parse_spec,
)
from batchlab.store.database import FILE, Run, Store
from batchlab.studies import STUDIES
from batchlab.studies.results import Results, Trials


class Request(Frozen):
    """What is asked of `reproduce`; with a store it is enough to tell all findings again."""

    protocol: Protocol
    seeds: int
    studies: tuple[str, ...]

    def specs(self) -> list[Spec]:
        """Every run that the studies need, each once."""
        wanted = (
            s for name in self.studies for s in STUDIES[name].specs(self.protocol, self.seeds)
        )
        return list(dict.fromkeys(wanted))


def choose_backend(name: str, workers: int | None, threads: int | None) -> Backend:
    """A backend by name; all cores are used where nothing else is said."""
    one_of("--backend", name, list(BACKENDS))
    count = 1 if name == "serial" else workers or cores()
    return BACKENDS[name](count, threads or max(1, cores() // count))


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


def sections(request: Request, store: Store) -> list[Section]:
    """What every study of the request finds and shows, from the store alone."""
    results = _results(request, store)
    return [STUDIES[name].section(results) for name in request.studies]


def cover(request: Request, scale: str, runs: int) -> dict[str, str]:
    """What the page says of itself: title, lead, and what was run."""
    p = request.protocol
    return {
        "title": f"What batch size should I use, and why? The article's findings on {p.workload}",
        "lead": (
            f"Six experiments of 2018 on batch size, run again on {p.workload} with "
            f"{request.seeds} seeds: batch sizes {p.tiny}, {p.small}, {p.middle} and {p.large} "
            "stand for the article's 2, 64, 256 and 1,024. Each claim has a verdict from a 95% "
            "interval."
        ),
        "Workload": f"{p.workload}, {p.train_samples:,} training samples",
        "Model": "-".join(str(width) for width in ("inputs", *p.model.hidden, "classes")),
        "Scale": scale,
        "Matrix products": p.matmul,
        "Seeds": str(request.seeds),
        "Runs": str(runs),
        "batchlab": __version__,
        "Made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def findings(store: Store) -> list[Finding]:
    """The findings of all that was ever asked of the store and is complete in it."""
    told: dict[str, Finding] = {}
    for text in store.requests():
        try:
            request = Request.model_validate_json(text)
        except ValidationError as error:
            raise UserError(f"store {store.root}: damaged request: {one_line(error)}") from None
        results = _results(request, store)
        for name in request.studies:
            for finding in STUDIES[name].findings(results):
                told[json.dumps(finding.json(), sort_keys=True)] = finding
    return list(told.values())


def _results(request: Request, store: Store) -> Results:
    keys = [spec.key for spec in request.specs()]
    status = {run.key: run.status for run in store.runs(keys)}
    return Results(
        request.protocol,
        request.seeds,
        status,
        store.records(keys),
        store.trials(keys),
        store.bins(keys),
    )


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
    start = store.runs([spec.start.key])[0]
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


def describe(store: Store, keys: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Stored runs as JSON objects: what was asked for, how it ended, the last measurement."""
    runs = store.runs(keys)
    frame = store.records([run.key for run in runs if run.kind == "train"])
    last = frame.groupby(["key", "name", "layer"], sort=False)["value"].last()
    by_key = {key: part.droplevel("key") for key, part in last.groupby(level="key")}
    return [_describe_run(run, by_key.get(run.key)) for run in runs]


def runs_frame(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Training runs as a flat table, for people and spreadsheets."""
    flat = []
    for row in rows:
        spec = parse_spec(json.dumps(row["spec"]))
        if isinstance(spec, TrainSpec):
            schedule = ", then ".join(p.label() for p in spec.schedule)
            given = {"workload": spec.workload, "schedule": schedule, "seed": spec.seed}
            given["matmul"] = spec.matmul
            cosines = {f"cos {layer}": value for layer, value in (row["cos"] or {}).items()}
            rest = {k: v for k, v in row.items() if k not in ("spec", "cos", "key")}
            flat.append({"key": row["key"]} | given | rest | cosines)
    return pd.DataFrame(flat)


_COLUMNS = {
    "test_accuracy": ("test_accuracy", ALL),
    "train_accuracy": ("train_accuracy", ALL),
    "test_loss": ("test_loss", ALL),
    "train_loss": ("train_loss", ALL),
    "W": ("distance", WEIGHTS),
    "b": ("distance", BIASES),
    "oW": ("norm", WEIGHTS),
    "ob": ("norm", BIASES),
}


def _describe_run(run: Run, last: "pd.Series[float] | None") -> dict[str, Any]:
    told: dict[str, Any] = {
        "key": run.key,
        "spec": json.loads(run.spec),
        "status": run.status,
        "steps": run.steps,
    }
    if run.kind == "train":
        ended = run.status == "finished" and last is not None
        told |= {
            column: finite(last.get(where)) if ended and last is not None else None
            for column, where in _COLUMNS.items()
        }
        told["cos"] = None
        if ended and last is not None:
            cosines = last.xs("cosine", level="name") if "cosine" in last.index else pd.Series()
            told["cos"] = {k: finite(v) for k, v in cosines.items() if k != WEIGHTS}
    return told | {"seconds": round(run.seconds, 3)}


def finite(value: float | None) -> float | None:
    """The number, or null: strict JSON has no infinities."""
    return float(value) if value is not None and np.isfinite(value) else None


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
    return [
        {
            "batch_size": int(size),
            "convention": convention,
            "layer": layer,
            "norm_mean": finite(norms.mean()),
            "norm_std": finite(norms.std(ddof=1)) if norms.size > 1 else None,
            "kurtosis_mean": finite(kurtosis),
            "exponent": fitted and finite(fitted.effect),
            "exponent_low": fitted and finite(fitted.low),
            "exponent_high": fitted and finite(fitted.high),
            "n": int(norms.size),
        }
        for size, norms, kurtosis in zip(trials.sizes, norms_ZDO, kurtosis_Z, strict=True)
    ]
