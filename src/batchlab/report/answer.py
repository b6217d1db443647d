"""The advice as one page that opens anywhere: the answer on top, its figures, what was measured."""

from dataclasses import dataclass
from pathlib import Path

from batchlab.documents import write
from batchlab.record import Panel, Table
from batchlab.report import export
from batchlab.report.specs import specs
from batchlab.report.template import environment, render

PAGE = "report.html"
# The look of the verdicts on the laboratory's page.
LOOKS = {
    "agreed": "supported",
    "disagreed": "refuted",
    "undecided": "inconclusive",
    "not tested": "cannot",
}


@dataclass(frozen=True, slots=True)
class Page:
    """What the page shows. All texts are escaped; `facts` and `cover` are names and values."""

    title: str
    headline: str
    tested: str
    facts: tuple[tuple[str, str], ...]
    panels: tuple[Panel, ...]
    tables: tuple[Table, ...]
    notes: tuple[str, ...]
    cover: tuple[tuple[str, str], ...]


def write_answer(page: Page, out: Path) -> Path:
    """Write the page into `out` and return its path; `OSError` where that cannot be written.

    Raises `ValueError` for a panel that cannot be drawn.
    """
    text = render(
        environment(),
        "advice.html.j2",
        export.library(),
        title=page.title,
        page=page,
        look=LOOKS[page.tested],
        drawn={panel.id: specs(panel) for panel in page.panels},
    )
    out.mkdir(parents=True, exist_ok=True)
    write(out / PAGE, text)
    return out / PAGE
