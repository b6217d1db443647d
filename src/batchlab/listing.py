"""A store's runs as JSON objects and as a table. Nothing heavy is imported for the former."""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import pandas as pd

from batchlab.record import ALL, BIASES, WEIGHTS
from batchlab.spec import TrainSpec, parse_spec
from batchlab.store.database import Last, Run, Store


def describe(store: Store, keys: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Stored runs as JSON objects: what was asked for, how it ended, the last measurement."""
    return [
        {"key": run.key, "spec": json.loads(run.spec), **_ending(run, last)}
        for run, last in store.ended(keys)
    ]


def texts(store: Store) -> Iterator[str]:
    """The JSON of every stored run, as `describe` has it, with all numbers as they are stored.

    To read and write the numbers and specs of 100,000 runs would take seconds.
    """
    for run, final in store.finals():
        told = f'{{"key": "{run.key}", "spec": {run.spec}, "status": "{run.status}"'
        told += f', "steps": {run.steps}'
        if run.kind == "train":
            last: dict[str, dict[str, str]] = _as_text(final) if run.status == "finished" else {}
            for column, (name, layer) in _COLUMNS.items():
                found = name in last and layer in last[name]
                told += f', "{column}": {last[name][layer] if found else "null"}'
            cosines = last.get("cosine", {})
            of = ", ".join(f"{_quoted(k)}: {v}" for k, v in cosines.items() if k != WEIGHTS)
            told += f', "cos": {{{of}}}' if last else ', "cos": null'
        yield f'{told}, "seconds": {round(run.seconds, 3)}}}'


_as_text = json.JSONDecoder(parse_float=str).decode
_quoted = cache(json.dumps)


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


def _ending(run: Run, last: Last) -> dict[str, Any]:
    """How a run ended, and with which measurements."""
    told: dict[str, Any] = {"status": run.status, "steps": run.steps}
    if run.kind == "train":
        ended = last if run.status == "finished" else {}
        for column, (name, layer) in _COLUMNS.items():
            of = ended.get(name)
            told[column] = of.get(layer) if of else None
        cosines = ended.get("cosine", {})
        told["cos"] = {k: v for k, v in cosines.items() if k != WEIGHTS} if ended else None
    told["seconds"] = round(run.seconds, 3)
    return told
