"""What a store's runs say, without anything being run. No torch."""

import json
from datetime import UTC, datetime

from pydantic import ValidationError

from batchlab import __version__
from batchlab.analysis.intervals import MIN_REPETITIONS
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


def cautions(request: Request) -> list[str]:
    """What a reader of the verdicts must be told first."""
    if request.seeds >= MIN_REPETITIONS:
        return []
    return [
        f"Fewer than {MIN_REPETITIONS} seeds decide nothing: figures and tables are there, and "
        "every verdict is inconclusive."
    ]


def cover(request: Request, scale: str, runs: int) -> dict[str, str]:
    """What the page says of itself: title, lead, and what was run."""
    p = request.protocol
    ours, theirs = (p.tiny, p.small, p.middle, p.large), (2, 64, 256, 1024)
    lead = [
        f"What an article of 2018 found of the batch size, and what it left open, on {p.workload} "
        f"with {request.seeds} seed{'s' if request.seeds > 1 else ''}."
    ]
    if ours != theirs:
        told = [f"{', '.join(f'{b:,}' for b in of[:3])} and {of[3]:,}" for of in (ours, theirs)]
        lead.append(f"Batch sizes {told[0]} stand for its {told[1]}.")
    lead += ["Each claim has a verdict from 95% intervals.", *cautions(request)]
    return {
        "title": f"What batch size should I use, and why? The article's findings on {p.workload}",
        "lead": " ".join(lead),
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
    """The findings of all that was ever asked of the store, by what of it is there."""
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
