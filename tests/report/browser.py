"""The page as a reader sees it, in a headless Chromium."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest

ARGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
WIDE, PHONE = 1280, 390
Scheme = Literal["light", "dark"]

UNDRAWN = """() => [...document.querySelectorAll("figure[data-chart]")]
  .filter((f) => !f.querySelector(".chart svg g[class*='mark-'] > *"))
  .map((f) => f.dataset.chart)"""
OVERFLOW = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"
# The luminance of the page's ground and of the first figure's axis labels.
LIGHTNESS = """() => {
  const lightness = (colour) => {
    const [r, g, b] = colour.match(/[\\d.]+/g).map(Number);
    return (0.2126 * r + 0.7152 * g + 0.0722 * b) / 255;
  };
  const label = document.querySelector(".chart .role-axis-label text");
  return [lightness(getComputedStyle(document.body).backgroundColor),
          label && lightness(getComputedStyle(label).fill)];
}"""


@contextmanager
def opened(path: Path, width: int, scheme: Scheme, trouble: list[str]) -> Iterator[Any]:
    """The page, its figures drawn; errors and requests to anything else go to `trouble`."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed")
    url = path.resolve().as_uri()
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=list(ARGS))
        try:
            page = browser.new_page(
                viewport={"width": width, "height": 900},
                color_scheme=scheme,
                reduced_motion="reduce",
            )
            page.on("pageerror", lambda error: trouble.append(f"page error: {error}"))
            page.on(
                "console",
                lambda said: (
                    trouble.append(f"console: {said.text}")
                    if said.type in ("error", "warning")
                    else None
                ),
            )
            page.on(
                "request",
                lambda asked: (
                    None
                    if asked.url == url or asked.url.startswith("data:")
                    else trouble.append(f"request: {asked.url}")
                ),
            )
            page.goto(url)
            page.wait_for_function("document.body.dataset.drawn !== undefined", timeout=60_000)
            yield page
        finally:
            browser.close()


def check_page(path: Path) -> int:
    """Assert that the report is whole on a desk and on a phone, light and dark.

    No error, no warning, no request but for the file itself, every figure drawn, nothing wider
    than the screen, light text on a dark ground in the dark scheme. Returns the number of figures.
    """
    figures = 0
    views: tuple[tuple[int, Scheme], ...] = ((WIDE, "light"), (PHONE, "dark"))
    for width, scheme in views:
        trouble: list[str] = []
        with opened(path, width, scheme, trouble) as page:
            figures = page.locator("figure[data-chart]").count()
            undrawn = page.evaluate(UNDRAWN)
            overflow = page.evaluate(OVERFLOW)
            ground, label = page.evaluate(LIGHTNESS)
        assert not trouble, trouble
        assert not undrawn, f"not drawn at {width} px: {undrawn}"
        assert overflow <= 0, f"{overflow} px too wide at {width} px"
        dark = scheme == "dark"
        assert (ground < 0.2) == dark
        assert label is None or (label > 0.5) == dark, f"axis labels in {scheme}: {label}"
    return figures
