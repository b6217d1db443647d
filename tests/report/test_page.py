"""The report on disk and in a browser: whole, strict, safe and self-contained."""

import csv
import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from batchlab.record import Axis, Panel, Section
from batchlab.report import export, page
from batchlab.report.page import write_report
from tests.report import sample
from tests.report.browser import PHONE, WIDE, check_page, opened

HOSTILE = "<script>window.harmed = 1</script><!-- </title> & \"quotes\" 'too'"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report")
    return write_report(sample.sections(), sample.META, sample.RUNS, out)


def small(*panels: Panel, hostile: str = "plain") -> list[Section]:
    found = (sample.finding(claim=hostile, article=hostile, number=1),)
    return [Section("one", hostile, hostile, (hostile,), found, panels, ())]


def hostile_panel() -> Panel:
    frame = pd.DataFrame({"x": [1.0, 2.0], "y": [1.0, 2.0], "s": HOSTILE})
    axes = Axis("x", HOSTILE), Axis("y", HOSTILE)
    return Panel("hostile", HOSTILE, "line", frame, *axes, HOSTILE, Axis("s", HOSTILE))


class Scripts(HTMLParser):
    """The script elements of a page, as a browser would end them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.count = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: object) -> None:  # noqa: ARG002
        self.count += tag == "script"


def test_everything_is_written_and_nothing_else(report: Path) -> None:
    out = report.parent
    panels = [panel.id for section in sample.sections() for panel in section.panels]
    figures = {f"figures/{name}.{kind}" for name in panels for kind in ("svg", "png")}
    written = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert written == {"report.html", "findings.json", "runs.csv", *figures}
    with (out / "runs.csv").open(newline="") as file:
        assert next(csv.reader(file)) == list(sample.RUNS.columns)


def test_the_browser_finds_it_whole(report: Path) -> None:
    assert check_page(report) == sum(len(section.panels) for section in sample.sections())


def test_the_first_screen_has_all_twelve_verdicts(report: Path) -> None:
    for width in (WIDE, PHONE):
        with opened(report, width, "light", []) as shown:
            tiles = shown.locator(".tile")
            assert tiles.count() == 12
            assert all(
                (box := tiles.nth(i).bounding_box()) and box["y"] + box["height"] < 900
                for i in range(12)
            )
            summary = " ".join(shown.locator(".summary").inner_text().split())
            assert summary.startswith(
                "8 supported 2 refuted 2 inconclusive of 12 tested from the article’s list; "
            )
            assert summary.endswith(" of those supported not under every reading")
            fourth = shown.locator("#verdict-4").inner_text()
            assert (
                "holds under 1, does not hold under 2, can’t hold under 2, undecided under 1 of 6 "
                "readings" in fourth
            )


def test_claims_keep_their_numbers_in_the_articles_list(tmp_path: Path) -> None:
    found = (sample.finding(id="eleventh", number=11), sample.finding(id="ours"))
    one = Section("one", "One", "A question?", (), found, (), ())
    text = write_report([one], sample.META, sample.RUNS, tmp_path).read_text()
    assert 'id="verdict-11"' in text
    assert 'id="verdict-1"' not in text
    assert "of 1 tested from the article’s list" in text


def test_studies_without_a_claim_of_the_article_say_so(tmp_path: Path) -> None:
    one = Section("one", "One", "A question?", (), (sample.finding(id="ours"),), (), ())
    text = write_report([one], sample.META, sample.RUNS, tmp_path).read_text()
    assert "None of these studies tests a finding from the article’s list." in text
    assert 'class="tiles"' not in text


def test_the_legend_picks_series(report: Path) -> None:
    with opened(report, WIDE, "light", []) as shown:
        figure = shown.locator("#figure-accuracy")
        lines = figure.locator("svg g.mark-line > path")
        button = figure.locator(".legend button", has_text="64").first
        button.click()
        assert button.get_attribute("aria-pressed") == "true"
        shown.wait_for_timeout(100)
        opacities = [lines.nth(i).get_attribute("opacity") for i in range(lines.count())]
        assert sorted(opacities) == ["0.12"] * 4 + ["1"]


def test_the_pointer_is_told_what_is_near(report: Path) -> None:
    with opened(report, WIDE, "light", []) as shown:
        for figure, told in (("switching", "schedule"), ("norms", "regime"), ("cosines", "layer")):
            chart = shown.locator(f"#figure-{figure} .chart")
            chart.scroll_into_view_if_needed()
            chart.locator(
                "svg g.role-mark.mark-symbol path, svg g.role-mark.mark-rect path"
            ).last.hover(force=True)
            tip = shown.locator("#vg-tooltip-element.visible")
            tip.wait_for()
            assert told in tip.inner_text()
            assert "undefined" not in tip.inner_text()
            assert "NaN" not in tip.inner_text()


def test_a_figure_that_cannot_be_drawn_says_so(report: Path, tmp_path: Path) -> None:
    broken = tmp_path / "report.html"
    broken.write_text(report.read_text().replace('"type": "area"', '"type": "nonsense"', 1))
    trouble: list[str] = []
    with opened(broken, WIDE, "light", trouble) as shown:
        assert "could not be drawn" in shown.locator("#figure-accuracy").inner_text()
    assert any("figure accuracy" in said for said in trouble)
    with pytest.raises(AssertionError):
        check_page(broken)


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    path = write_report(
        small(hostile_panel(), hostile=HOSTILE),
        {"title": HOSTILE, "lead": HOSTILE, HOSTILE: HOSTILE},
        sample.RUNS,
        tmp_path,
    )
    assert Scripts(path.read_text()).count == 3  # the figure's, the library, the page's own
    assert json.loads((tmp_path / "findings.json").read_text())[0]["claim"] == HOSTILE
    trouble: list[str] = []
    with opened(path, WIDE, "light", trouble) as shown:
        assert shown.evaluate("window.harmed") is None
        assert shown.title() == HOSTILE
        assert HOSTILE in shown.locator("#figure-hostile svg").text_content()
    assert not trouble


def test_findings_are_strict_json(tmp_path: Path) -> None:
    # NumPy's numbers slip in from frames.
    odd = sample.finding(effect=np.float32("nan"), low=-np.inf, high=np.inf, n=np.int64(3))
    section = replace(small()[0], findings=(odd,))
    write_report([section], sample.META, sample.RUNS, tmp_path)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    text = (tmp_path / "findings.json").read_text()
    (found,) = json.loads(text, parse_constant=refuse)
    assert (found["effect"], found["low"], found["high"], found["n"]) == (None, None, None, 3)
    assert list(found) == list(odd.json())
    assert "no estimate" in (tmp_path / "report.html").read_text()


def test_a_panel_without_rows_says_so(tmp_path: Path) -> None:
    panel = sample.line("p", rows=3)
    path = write_report(
        small(replace(panel, frame=panel.frame.assign(accuracy=np.nan))),
        sample.META,
        sample.RUNS,
        tmp_path,
    )
    assert "Nothing to draw" in path.read_text()
    assert check_page(path) == 0


def test_figures_that_are_there_are_not_drawn_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    panel = sample.line("p", rows=3)
    write_report(small(panel), sample.META, sample.RUNS, tmp_path)

    def refuse(*_: object) -> None:
        raise AssertionError("drawn again")

    monkeypatch.setattr(export, "_draw", refuse)
    write_report(small(panel), sample.META, sample.RUNS, tmp_path)
    with pytest.raises(AssertionError, match="drawn again"):
        write_report(small(replace(panel, title="other")), sample.META, sample.RUNS, tmp_path)


@pytest.mark.parametrize("ids", [("a", "a"), ("../a",), ("",)])
def test_ids_that_are_no_file_names_are_refused(tmp_path: Path, ids: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="panel"):
        write_report(
            small(*(sample.line(id, rows=3) for id in ids)),
            sample.META,
            sample.RUNS,
            tmp_path / "out",
        )
    assert not (tmp_path / "out").exists()


def test_a_page_that_would_say_the_same_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "library", lambda: "void 0")
    frame = pd.DataFrame({"x": [1.0, 2.0], "y": [1.0, 2.0]})
    panel = Panel("p", "t", "line", frame, Axis("x", "x"), Axis("y", "y"), "caption")
    meta = {**sample.META, page.MADE: "today"}
    path = write_report(small(panel), meta, sample.RUNS, tmp_path)
    first = path.read_text("utf-8")
    assert "today" in first
    write_report(small(panel), {**meta, page.MADE: "tomorrow"}, sample.RUNS, tmp_path)
    assert path.read_text("utf-8") == first
    for sections, said in (
        (small(panel, hostile="otherwise"), meta),
        (small(replace(panel, caption="otherwise")), meta),
        (small(panel), {**meta, "Runs": "otherwise"}),
    ):
        write_report(sections, said, sample.RUNS, tmp_path)
        assert "otherwise" in path.read_text("utf-8")
    path.write_text(first[:-100])
    write_report(small(panel), meta, sample.RUNS, tmp_path)
    assert path.read_text("utf-8") == first


def test_a_folder_that_cannot_be_written_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        write_report([], sample.META, sample.RUNS, tmp_path / "file" / "out")


def test_a_failed_write_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_report([], sample.META, sample.RUNS, tmp_path)
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("no room")

    monkeypatch.setattr("batchlab.documents.os.replace", fail)
    with pytest.raises(OSError, match="no room"):
        write_report([], {**sample.META, "title": "new"}, sample.RUNS, tmp_path)
    assert path.read_bytes() == before
    assert not list(tmp_path.rglob("*.tmp"))


def test_it_names_its_files() -> None:
    assert (page.PAGE, page.FINDINGS, page.RUNS) == ("report.html", "findings.json", "runs.csv")
