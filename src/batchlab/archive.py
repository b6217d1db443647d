"""What a store tells without anything being run: its runs, and what they say. No torch."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import pandas as pd
from pydantic import ValidationError

from batchlab import __version__
from batchlab.record import ALL, BIASES, WEIGHTS, Finding, Section
from batchlab.spec import Frozen, Protocol, Spec, TrainSpec, UserError, one_line, parse_spec
from batchlab.store.database import Last, Run, Store
from batchlab.studies import STUDIES
from batchlab.studies.results import Results


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


def complete(request: Request, store: Store) -> bool:
    """Whether every run of the request is stored."""
    states = store.states()
    return all(spec.key in states for spec in request.specs())


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
    states = store.states()
    status = {key: states[key] for key in keys if key in states}
    return Results(
        request.protocol,
        request.seeds,
        status,
        store.records(keys),
        store.trials(keys),
        store.bins(keys),
    )


def describe(store: Store, keys: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Stored runs as JSON objects: what was asked for, how it ended, the last measurement."""
    return [_describe_run(run, last) for run, last in store.ended(keys)]


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


def _describe_run(run: Run, last: Last) -> dict[str, Any]:
    told: dict[str, Any] = {
        "key": run.key,
        "spec": json.loads(run.spec),
        "status": run.status,
        "steps": run.steps,
    }
    if run.kind == "train":
        ended = last if run.status == "finished" else {}
        told |= {column: ended.get(where) for column, where in _COLUMNS.items()}
        cosines = {
            layer: value
            for (name, layer), value in ended.items()
            if name == "cosine" and layer != WEIGHTS
        }
        told["cos"] = cosines if ended else None
    return told | {"seconds": round(run.seconds, 3)}
