"""`reproduce` from the command line to the page in a browser, at smoke scale."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from batchlab.studies.article import FINDINGS
from tests.conftest import Call
from tests.report.browser import check_page
from tests.test_cli import told


@pytest.mark.slow
def test_the_whole_way(
    batchlab: Call,
    tmp_path: Path,
) -> None:
    words = ("reproduce", "--scale", "smoke", "--seeds", 3, "--out", "o", "--json")
    first: dict[str, Any] = told(batchlab(*words))
    assert first["trained"] > 50
    assert set(FINDINGS) <= {f["id"] for f in first["findings"]}
    out = tmp_path / "o"
    assert (tmp_path / first["report"]) == out / "report.html"
    assert json.loads((out / "findings.json").read_text()) == first["findings"]
    with (out / "runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 17 * 3
    assert {row["status"] for row in rows} == {"finished"}
    figures = {p.stem for p in (out / "figures").glob("*.svg")}
    assert figures == {p.stem for p in (out / "figures").glob("*.png")}
    assert len(figures) > 25

    again = told(batchlab(*words))
    assert again["trained"] == 0
    assert again["findings"] == first["findings"]
    assert told(batchlab("findings", "--store", "o/store", "--json")) == first["findings"]

    assert check_page(out / "report.html") >= len(figures)

    few = batchlab(*words[:3], "--seeds", 2, "--study", "spread", "--out", "o")
    assert "mean-is-a-power-early" in few.stdout  # none of the article's list, so all are told
    assert "Fewer than 3 seeds decide nothing" in few.stderr
    assert "Fewer than 3 seeds decide nothing" in (out / "report.html").read_text()
