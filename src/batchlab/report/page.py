"""The report: one page that opens anywhere, its figures as files, its findings and runs as data."""

import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

import pandas as pd
from jinja2 import Environment

from batchlab.documents import write, write_json
from batchlab.record import Section
from batchlab.report import export
from batchlab.report.claims import STANDINGS, VERDICTS, claims, columns, counts, standing
from batchlab.report.numbers import interval, number
from batchlab.report.specs import Specs, specs
from batchlab.report.template import environment, render

PAGE, FINDINGS, RUNS, FIGURES = "report.html", "findings.json", "runs.csv", "figures"
MADE = "Made"  # the text of `meta` that is another every time
# A panel's id names its files and its place on the page.
SAFE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def write_report(
    sections: Sequence[Section], meta: Mapping[str, str], runs: pd.DataFrame, out: Path
) -> Path:
    """Write the page, the figures, `findings.json` and `runs.csv` into `out`; return the page.

    `meta` has the page's `title`, its `lead` (a paragraph), and whatever says where the records
    come from, shown in the order given. The page is written last: where it is, all of it is; one
    that would be the same but for the time `MADE` stays as it is.
    Raises `ValueError` for panels that cannot be drawn or whose ids clash, before anything is
    written, and `OSError` where `out` cannot be written.
    """
    drawn = _specs(sections)
    made = _environment()  # one for both renderings: reading the templates takes half of each
    figures = out / FIGURES
    figures.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(export.WORKERS) as pool:
        pictures = export.draw({name: spec.file for name, spec in drawn.items()}, figures, pool)
        undated = {key: value for key, value in meta.items() if key != MADE}
        # The library is most of a page's time, so that what it stands in is looked at before.
        signature = _signature(_render(made, sections, undated, len(runs), drawn, library=""))
        page = None
        if not _there(out / PAGE, signature):
            page = _render(made, sections, meta, len(runs), drawn, library=export.library())
        for picture in pictures:
            picture.result()
    found = [finding.json() for section in sections for finding in section.findings]
    write_json(out / FINDINGS, found)
    write(out / RUNS, runs.to_csv(index=False))
    if page is not None:
        write(out / PAGE, page + signature)
    return out / PAGE


def _signature(content: str) -> str:
    """What a page ends with: it says from what it was made, the time left out."""
    made_from = f"{version('vl-convert-python')} {export.VEGA_LITE} {content}"
    return f"\n<!-- {sha256(made_from.encode()).hexdigest()} -->\n"


def _there(page: Path, signature: str) -> bool:
    return page.exists() and page.read_text("utf-8").endswith(signature)


def _specs(sections: Sequence[Section]) -> dict[str, Specs]:
    drawn: dict[str, Specs] = {}
    for panel in (panel for section in sections for panel in section.panels):
        if not SAFE_ID.fullmatch(panel.id):
            raise ValueError(f"panel {panel.id!r}: its id has to do as a file's name")
        if panel.id in drawn:
            raise ValueError(f"panel {panel.id!r}: two panels have this id")
        drawn[panel.id] = specs(panel)
    return drawn


def _environment() -> Environment:
    made = environment()
    made.filters["number"] = number
    made.globals["interval"] = interval
    return made


def _render(
    made: Environment,
    sections: Sequence[Section],
    meta: Mapping[str, str],
    runs: int,
    drawn: Mapping[str, Specs],
    *,
    library: str,
) -> str:
    listed = claims(f for section in sections for f in section.findings if f.number)
    return render(
        made,
        "report.html.j2",
        library,
        sections=[(section, claims(section.findings)) for section in sections],
        home={f.id: section for section in reversed(sections) for f in section.findings},
        listed=listed,
        counts=counts(listed),
        verdicts=VERDICTS,
        partly=sum(claim.partly for claim in listed),
        columns=columns,
        standing=standing,
        standings=STANDINGS,
        meta={key: value for key, value in meta.items() if key not in ("title", "lead")},
        title=meta["title"],
        lead=meta["lead"],
        runs=runs,
        drawn=drawn,
        files={"findings": FINDINGS, "runs": RUNS, "figures": FIGURES},
    )
