"""Templates and what every page has in it: styles, scripts, JSON that a script element can hold."""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from batchlab.report import palette


def environment() -> Environment:
    """Texts are escaped; a name that is not given is an error."""
    made = Environment(
        loader=PackageLoader("batchlab.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["script"] = _script
    return made


def render(made: Environment, name: str, library: str, **given: Any) -> str:
    """The page of that template, with the drawing `library` in it and what it is given."""

    def inlined(part: str) -> Markup:
        source, _, _ = made.loader.get_source(made, part)  # type: ignore[union-attr]
        return Markup(source)

    return made.get_template(name).render(
        **given,
        light=Markup(palette.css(palette.LIGHT)),
        dark=Markup(palette.css(palette.DARK)),
        css=inlined("report.css"),
        js=inlined("report.js"),
        library=Markup(library),
    )


def _script(text: str) -> Markup:
    """JSON text that can stand inside a script element, where only `<` could end it."""
    return Markup(text.replace("<", r"\u003c"))
