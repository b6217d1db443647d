"""The studies on a smoke run: the twelve findings, panels and tables that hold together."""

from collections.abc import Iterator

import numpy as np
import pytest

from batchlab import laboratory as lab
from batchlab.backends.serial import Serial
from batchlab.jobs import Site
from batchlab.record import Section
from batchlab.spec import CONVENTIONS, Protocol, TrainSpec, TrialsSpec
from batchlab.store.database import Store
from batchlab.studies import STUDIES
from batchlab.studies.article import FINDINGS
from batchlab.workloads import workload
from tests.test_runner import Silent

SEEDS = 3


def bench(store: Store) -> lab.Bench:
    return lab.Bench(store, Serial(1), Site(store.root, None, "cpu"), Silent())


@pytest.fixture(scope="session")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[lab.Request, Store]]:
    protocol = workload("digits").protocol.smoke()
    small = {
        "trial_batch_sizes": (1, 3, 8, 32, 64),
        "crossed_batch_sizes": (1, 8, 64),
        "trial_samples": 64,
        "epochs": 2,
    }
    protocol = protocol.model_copy(update={**small, "tiny": 4})
    request = lab.Request(protocol=protocol, seeds=SEEDS, studies=tuple(STUDIES))
    with Store(tmp_path_factory.mktemp("smoke")) as store:
        lab.reproduce(request, bench(store))
        yield request, store


@pytest.fixture(scope="session")
def sections(smoke: tuple[lab.Request, Store]) -> list[Section]:
    return lab.sections(*smoke)


def test_all_twelve_findings_with_a_verdict(sections: list[Section]) -> None:
    found = [f for s in sections for f in s.findings]
    assert set(FINDINGS) <= {f.id for f in found}
    assert {f.id: f.number for f in found if f.number} == {
        id: place for place, id in enumerate(FINDINGS, 1)
    }
    for f in found:
        assert f.verdict in ("supported", "refuted", "inconclusive")
        assert f.effect is not None
        assert f.low is not None
        assert f.high is not None
        assert f.low <= f.effect <= f.high
        assert f.n == SEEDS
        for text in (f.claim, f.measure, f.test, f.reason, f.article, f.workload):
            assert text


def test_gradient_claims_stand_under_every_convention(sections: list[Section]) -> None:
    found = [f for s in sections if s.id == "gradient" for f in s.findings]
    for claim in ("gradient-norm-grows", "relative-spread-grows", "heavier-tail"):
        assert {f.convention for f in found if f.id == claim} == set(CONVENTIONS)
    by = {(f.id, f.convention): f for f in found}
    frozen = by["gradient-norm-grows", "sum-frozen"]
    assert frozen.effect == pytest.approx(0, abs=1e-6)
    assert frozen.verdict == "refuted"
    assert by["gradient-norm-grows", "mean-frozen"].effect == pytest.approx(-1, abs=0.02)
    for convention in ("mean-frozen", "sum-frozen"):
        assert by["relative-spread-grows", convention].verdict != "supported"


def test_panels_and_tables_hold_together(sections: list[Section]) -> None:
    panels = [p for s in sections for p in s.panels]
    assert len({p.id for p in panels}) == len(panels)
    for p in panels:
        columns = {p.x.field, p.y.field, p.low, p.high, p.text} - {None}
        columns |= {p.series.field} if p.series else set()
        assert columns <= set(p.frame.columns), p.id
        assert len(p.frame), p.id
        assert "n = " in p.caption, p.id
        if p.x.log:
            assert (p.frame[p.x.field] > 0).all(), p.id
    for s in sections:
        assert s.panels
        assert s.tables
        assert s.question.endswith("?")
        for table in s.tables:
            assert all(len(row) == len(table.columns) for row in table.rows)


def test_findings_are_told_again_from_the_store(
    smoke: tuple[lab.Request, Store], sections: list[Section]
) -> None:
    _, store = smoke
    assert lab.findings(store) == [f for s in sections for f in s.findings]


def test_a_second_reproduce_runs_nothing(smoke: tuple[lab.Request, Store]) -> None:
    request, store = smoke
    assert lab.reproduce(request, bench(store)) == 0


def test_too_few_seeds_are_inconclusive(smoke: tuple[lab.Request, Store]) -> None:
    request, store = smoke
    two = request.model_copy(update={"seeds": 2})
    for section in lab.sections(two, store):
        assert {f.verdict for f in section.findings} == {"inconclusive"}


def test_what_is_missing_is_no_number(smoke: tuple[lab.Request, Store]) -> None:
    request, store = smoke
    more = request.model_copy(update={"seeds": SEEDS + 1})
    found = [f for s in lab.sections(more, store) for f in s.findings]
    assert {f.n for f in found} == {SEEDS}


def protocols() -> list[Protocol]:
    return [workload(name).protocol for name in ("digits", "mnist")]


@pytest.mark.parametrize("protocol", protocols(), ids=lambda p: p.workload)
def test_specs_are_the_articles(protocol: Protocol) -> None:
    specs = {s for study in STUDIES.values() for s in study.specs(protocol, 1)}
    runs = [s for s in specs if isinstance(s, TrainSpec)]
    schedules = {tuple((p.batch_size, p.epochs) for p in s.schedule) for s in runs}
    p = protocol
    for schedule in (
        ((p.tiny, 30),),
        ((p.middle, 30),),
        ((p.large, 60),),
        ((p.large, 1), (p.small, 30)),
        ((p.large, 30), (p.small, 30)),
        ((p.large, 30), (p.large, 30)),
        ((p.large, 480),),
        ((p.large, 2),),
    ):
        assert schedule in schedules
    trials = [s for s in specs if isinstance(s, TrialsSpec)]
    assert {s.start.schedule[0].epochs for s in trials} == {2, 30}
    assert {len(s.batch_sizes) for s in trials if s.orders == 1} == {15}
    assert {s.orders == s.draws for s in trials if len(s.batch_sizes) < 15} == {True}
    assert {s.samples for s in trials} == {1024}
    for spec in specs:
        spec.check(p.train_samples)


def test_studies_share_runs(smoke: tuple[lab.Request, Store]) -> None:
    request, _ = smoke
    asked = sum(len(STUDIES[name].specs(request.protocol, SEEDS)) for name in STUDIES)
    assert len(request.specs()) < asked


def test_curves_end_where_the_runs_end(sections: list[Section]) -> None:
    panel = next(p for s in sections for p in s.panels if p.id == "batch-size-test-accuracy-epoch")
    last = panel.frame.groupby("arm")["epoch"].max()
    assert np.allclose(last, 2)


def test_diverged_runs_leave_the_rest_standing(smoke: tuple[lab.Request, Store]) -> None:
    request, store = smoke
    wild = request.protocol.model_copy(update={"high_learning_rate": 100.0})
    wilder = lab.Request(protocol=wild, seeds=SEEDS, studies=("learning-rate", "distance"))
    lab.reproduce(wilder, bench(store))
    statuses = {run.status for run in store.runs([s.key for s in wilder.specs()])}
    assert statuses == {"finished", "diverged"}
    sections = lab.sections(wilder, store)
    by = {f.id: f for s in sections for f in s.findings}
    assert by["learning-rate-recovers"].verdict == "inconclusive"
    assert by["learning-rate-recovers"].effect is None
    assert by["learning-rate-recovers"].n == 0
    assert by["too-short-a-way"].n == SEEDS
    cells = next(p for s in sections for p in s.panels if p.id == "distance-cells")
    assert cells.frame["text"].str.contains(f"{SEEDS} of {SEEDS} diverged").sum() == 3
    rows = [row for s in sections for t in s.tables for row in t.rows]
    assert {row[-1] for row in rows} == {"0", str(SEEDS)}
