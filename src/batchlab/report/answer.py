"""The advice as one page that opens anywhere: the answer on top, its figures, what was measured."""

from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from batchlab.record import Panel, Table
from batchlab.report import export, palette
from batchlab.report.files import write
from batchlab.report.specs import specs

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
    environment = Environment(
        loader=PackageLoader("batchlab.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # JSON text can stand inside a script element, where only `<` could end it.
    environment.filters["script"] = lambda text: Markup(text.replace("<", r"\u003c"))

    def inlined(name: str) -> Markup:
        source, _, _ = environment.loader.get_source(environment, name)  # type: ignore[union-attr]
        return Markup(source)

    text = environment.get_template("advice.html.j2").render(
        page=page,
        look=LOOKS[page.tested],
        drawn={panel.id: specs(panel) for panel in page.panels},
        light=Markup(palette.css(palette.LIGHT)),
        dark=Markup(palette.css(palette.DARK)),
        css=inlined("report.css"),
        js=inlined("report.js"),
        library=Markup(export.library()),
    )
    out.mkdir(parents=True, exist_ok=True)
    write(out / PAGE, text)
    return out / PAGE
