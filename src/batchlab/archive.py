"""What a store's runs say, without anything being run. No torch."""

import json
from datetime import UTC, datetime

from pydantic import ValidationError

from batchlab import __version__
from batchlab.record import Finding, Section
from batchlab.spec import Frozen, Protocol, Spec, UserError, one_line
from batchlab.store.database import Store
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
