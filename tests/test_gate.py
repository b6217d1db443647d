"""What one process leaves to another: the same piece, or one that trains a step of it."""

import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from batchlab.backends.base import Interrupted
from batchlab.backends.serial import Serial
from batchlab.gate import Gate
from batchlab.jobs import Ended, Job, Outcome, Site, execute, under_way_key
from batchlab.plan import Stretch, shared_steps
from batchlab.runner import prepare, run_all
from batchlab.spec import Optimizer, Spec, TrainSpec
from batchlab.store.claims import Claims
from batchlab.store.database import Run, Store
from tests.test_runner import START, TRIALS, Silent, digits, phase

N = 1437


def test_shared_steps() -> None:
    a, b = phase(200, epochs=4), phase(100, epochs=2)  # 8 and 15 steps an epoch
    cases: list[tuple[TrainSpec, TrainSpec, int]] = [
        (digits(a, b), digits(a, b), 62),
        (digits(a, b), digits(a), 32),
        (digits(a), digits(phase(200, epochs=9)), 32),
        (digits(phase(200, epochs=1), phase(200, epochs=3), b), digits(a, a), 32),
        (digits(a), digits(phase(200, rate=0.1, epochs=4)), 0),
        (digits(a), digits(a, seed=1), 0),
        (digits(a), digits(a.model_copy(update={"optimizer": Optimizer(name="adam")})), 0),
        (digits(a, b), digits(a, phase(100, epochs=1), a), 47),
    ]
    for one, other, steps in cases:
        assert shared_steps(one, other, N) == shared_steps(other, one, N) == steps
    short = a.model_copy(update={"epochs": None, "steps": 7})
    assert shared_steps(digits(short, b), digits(short), N) == 7
    assert shared_steps(digits(short), digits(a), N) == 0


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Claims]:
    """What another process claims."""
    with Store(tmp_path), Claims(tmp_path) as claims:
        yield claims


def pieces(store: Store, specs: list[Spec]) -> list[Any]:
    site = Site(store.root, None, "cpu")
    return list(prepare(specs, store, Serial(1), site, pace=1.0).plan.pieces)


def gate(store: Store, claims: Claims) -> Gate:
    return Gate(store, claims, Site(store.root, None, "cpu"))


def test_stretches_that_share_a_step(tmp_path: Path, other: Claims) -> None:
    long, longer = digits(phase(200, epochs=4)), digits(phase(200, epochs=9))
    elsewhere = digits(phase(100, epochs=4))
    with Store(tmp_path) as store, Claims(tmp_path) as mine:
        theirs = gate(store, other)
        assert theirs.opens(pieces(store, [long]))
        here = gate(store, mine)
        assert not here.opens(pieces(store, [long]))
        assert not here.opens(pieces(store, [longer]))
        names = [under_way_key(piece) for piece in pieces(store, [long])]
        assert [claim.name for claim in here.against] == names * 2
        assert here.opens(pieces(store, [elsewhere]))
        assert here.refused == 2
        theirs.closes(pieces(store, [long]))
        assert here.opens(pieces(store, [longer]))


def test_what_begins_where_the_other_ends_is_free(tmp_path: Path, other: Claims) -> None:
    trunk, branch = digits(phase(200, epochs=4)), digits(phase(200, epochs=4), phase(100))
    with Store(tmp_path) as store, Claims(tmp_path) as mine:
        first, second = pieces(store, [trunk, branch])
        assert isinstance(second, Stretch)
        assert second.first == first.steps == 32
        assert gate(store, other).opens([first])
        assert gate(store, mine).opens([second])


def test_what_is_done_since_the_plan(tmp_path: Path) -> None:
    with Store(tmp_path) as store, Claims(tmp_path) as mine:
        before = gate(store, mine)
        planned = pieces(store, [TRIALS])
        site = Site(store.root, None, "cpu")
        assert run_all([TRIALS], store, Serial(1), site, progress=Silent()) == 2
        assert not before.opens(planned[:1])
        assert not before.opens(planned[1:])
        assert before.refused == 2
        assert before.against == []


def test_an_end_that_was_kept_since_the_plan(tmp_path: Path, other: Claims) -> None:
    """No run tells of it; its claim is given back, and it is planned around from then on."""
    specs: list[Spec] = [digits(phase(200), phase(size)) for size in (100, 300)]
    with Store(tmp_path) as store, Claims(tmp_path) as mine:
        before = gate(store, mine)
        trunk = pieces(store, specs)[0]
        assert isinstance(trunk, Stretch)
        assert trunk.keep
        assert not trunk.runs
        execute(Job((trunk,), Site(store.root, None, "cpu")), lambda _: None)
        assert not before.opens([trunk])
        assert (before.refused, before.against) == (1, [])
        assert gate(store, other).opens([trunk]), "it is still claimed"
        assert trunk.label not in [piece.label for piece in pieces(store, specs)]


def test_what_another_is_at_is_waited_for(
    tmp_path: Path, other: Claims, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other does its piece meanwhile; this process does the rest and then what waited."""
    branch = digits(phase(200), phase(100))
    with Store(tmp_path) as store:
        first = pieces(store, [START, branch])[0]
        assert gate(store, other).opens([first])
        waited = 0

        def nap(_: float) -> None:
            nonlocal waited
            waited += 1
            if waited == 3:
                site = Site(store.root, None, "cpu")
                (outcome,) = execute(Job((first,), site), lambda _: None)
                for ended in outcome.ended:
                    store.add(ended.run, ended.records)
                other.give_back([under_way_key(first)])

        monkeypatch.setattr("batchlab.runner.time.sleep", nap)
        progress = Silent()
        elsewhere = digits(phase(300))
        site = Site(store.root, None, "cpu")
        done = run_all([START, branch, elsewhere], store, Serial(1), site, progress=progress)
        assert (done, waited) == (2, 3)
        assert "waiting for what another process is at" in progress.said
        assert store.keys() == {START.key, branch.key, elsewhere.key}


def test_waiting_can_be_stopped(tmp_path: Path, other: Claims) -> None:
    with Store(tmp_path) as store:
        assert gate(store, other).opens(pieces(store, [START]))
        site = Site(store.root, None, "cpu")
        with pytest.raises(Interrupted):
            run_all([START], store, Serial(1), site, progress=Silent(), stopping=lambda: True)


class Swollen:
    """A backend whose results are large and of which none is there before it is asked for."""

    workers = threads = 1
    size = 10**6

    def map(
        self, _: object, items: list[Job], *, begin: Callable[[int], bool], **more: object
    ) -> Iterator[tuple[int, list[Outcome]]]:
        for index, job in enumerate(items):
            assert begin(index), more
            (piece,) = job.pieces
            assert isinstance(piece, Stretch)
            run = piece.runs[0]
            told = Ended.of(_run(run, "x" * self.size))
            yield index, [Outcome("finished", (told,))]


def _run(spec: TrainSpec, text: str) -> Run:
    return Run(spec.key, "train", spec.canonical(), "finished", 1, 0.1, text)


def test_memory_does_not_grow_with_the_study(tmp_path: Path) -> None:
    peaks = []
    for count in (4, 24):
        with Store(tmp_path / str(count)) as store:
            specs: list[Spec] = [digits(phase(500), seed=seed) for seed in range(count)]
            site = Site(store.root, None, "cpu")
            tracemalloc.start()
            backend: Any = Swollen()
            assert run_all(specs, store, backend, site, progress=Silent()) == count
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert peaks[1] - peaks[0] < 6 * Swollen.size  # 20 more results have 20 times the size
