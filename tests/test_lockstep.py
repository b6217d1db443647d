"""Which pieces go side by side; and that a store can't tell whether they did."""

from itertools import pairwise
from pathlib import Path

import pytest

from batchlab.backends.base import Interrupted
from batchlab.jobs import Job, Outcome, execute
from batchlab.lockstep import MOST as MOST_ON
from batchlab.lockstep import Group, groups, in_turns, shape
from batchlab.plan import Plan, Stretch, make_plan
from batchlab.spec import Model, Optimizer, TrainSpec, TrialsSpec
from batchlab.store.database import Store
from tests.test_sharing import ADAM, HEAVY, alone, phase, run, spec, stored

DECOUPLED = Optimizer(name="adamw", weight_decay=0.1)
SEEDS = 5
MOST = MOST_ON["cpu"]


def plan(specs: list[TrainSpec], trials: tuple[TrialsSpec, ...] = ()) -> Plan:
    return make_plan([*specs, *trials], {}, {}, lambda _: 1437)


def always(_: Stretch) -> bool:
    return True


def seeds(*phases: object) -> list[TrainSpec]:
    return [spec(*phases, seed=seed) for seed in range(SEEDS)]  # type: ignore[arg-type]


def parted(made: Plan, together: tuple[Group, ...]) -> None:
    """Every piece is in one group; what a group waits for is one group that stands before it."""
    assert sorted(index for group in together for index in group) == list(range(len(made.pieces)))
    at = {index: place for place, group in enumerate(together) for index in group}
    for place, group in enumerate(together):
        waits = {made.pieces[index].after for index in group}
        assert len({None if after is None else at[after] for after in waits}) == 1
        assert all(after is None or at[after] < place for after in waits)


def test_seeds_and_rates_of_one_shape_go_together() -> None:
    made = plan([*seeds(phase(32, 2)), spec(phase(32, 2, rate=0.5)), spec(phase(64, 2))])
    together = groups(made.pieces, always, workers=2, most=MOST)
    parted(made, together)
    sizes = sorted(len(group) for group in together)
    assert sizes == [1, 3, 3]
    assert sizes[-1] <= MOST
    assert [len(g) for g in groups(made.pieces, always, workers=10, most=MOST)] == [1] * 7
    assert [len(g) for g in groups(made.pieces, lambda _: False, workers=1, most=MOST)] == [1] * 7


def test_a_group_is_no_larger_than_what_stays_in_the_cache() -> None:
    made = plan([spec(phase(32, 1), seed=seed) for seed in range(11)])
    assert sorted(len(g) for g in groups(made.pieces, always, workers=1, most=MOST)) == [3, 4, 4]


def test_branches_stay_with_their_trunks() -> None:
    start = phase(200, 2)
    trees = [*seeds(start), *seeds(start, phase(32, 2)), *seeds(start, phase(32, 2, rate=0.3))]
    trials = tuple(
        TrialsSpec(start=one, batch_sizes=(4,), samples=32, draws=2, learning_rate=0.1)
        for one in seeds(start)
    )
    made = plan(trees, trials)
    together = groups(made.pieces, lambda s: s.spec.schedule != (start,), workers=2, most=MOST)
    parted(made, together)
    for group in together:
        pieces = [made.pieces[index] for index in group]
        if len(pieces) > 1:
            assert all(isinstance(piece, Stretch) for piece in pieces)
            likes = [shape(piece.spec) for piece in pieces if isinstance(piece, Stretch)]
            assert all(one == other for one, other in pairwise(likes))
    trunks = groups(made.pieces, always, workers=1, most=MOST)
    parted(made, trunks)
    assert max(len(group) for group in trunks) == MOST


def test_shape_tells_apart_what_steps_differently() -> None:
    like = [
        spec(phase(8, 1, optimizer=ADAM)),
        spec(phase(8, 1, optimizer=DECOUPLED), seed=3),
        spec(phase(8, 1, rate=0.7, optimizer=Optimizer(name="adam", beta2=0.9))),
    ]
    assert len({shape(one) for one in like}) == 1
    assert shape(spec(phase(8, 1, optimizer=HEAVY))) == shape(
        spec(phase(8, 1, optimizer=Optimizer(weight_decay=0.1)))
    )
    different = [
        *like[:1],
        spec(phase(8, 1)),
        spec(phase(8, 1, optimizer=HEAVY)),
        spec(phase(8, 2)),
        spec(phase(16, 1)),
        spec(phase(8, 1), every=2),
        spec(phase(8, 1), steps=(3,)),
        spec(phase(8, 1), model=Model(hidden=(16,))),
    ]
    assert len({shape(one) for one in different}) == len(different)
    assert len({shape(one) for one in new_and_old_state()}) == 2


def new_and_old_state() -> list[TrainSpec]:
    """A run whose second phase has a fresh optimizer, and one that goes on with its own."""
    second = phase(8, 1, rate=0.001, optimizer=ADAM)
    return [
        spec(phase(8, 1, optimizer=one), second, model=Model(hidden=(32, 16)))
        for one in (DECOUPLED, ADAM)
    ]


def family() -> list[TrainSpec]:
    """Seeds and rates of one shape, with a branch, and one that diverges among them."""
    model = Model(hidden=(32, 16))
    made = []
    for seed in range(3):
        start = phase(200, 1)
        made += [
            spec(phase(48, 3, rate=0.02), seed=seed, model=model, steps=(2, 33)),
            spec(phase(48, 3, rate=1e9 if seed else 0.2), seed=seed, model=model, steps=(2, 33)),
            spec(start, seed=seed, model=model),
            spec(start, phase(32, 2), seed=seed, model=model),
            spec(phase(40, 2, optimizer=ADAM), seed=seed, model=model),
            spec(phase(40, 2, optimizer=DECOUPLED), seed=seed, model=model),
        ]
    return made


@pytest.mark.parametrize("name", ["serial", "processes"])
def test_the_store_is_as_of_runs_alone(tmp_path: Path, name: str) -> None:
    specs = family()
    with Store(tmp_path) as store:
        assert run(store, specs, name) == len(specs)
        assert stored(store, specs) == alone(specs)
    assert not list((tmp_path / "partial").glob("*"))


@pytest.mark.parametrize("order", [1, -1])
def test_a_state_that_goes_on_beside_one_that_begins(tmp_path: Path, order: int) -> None:
    specs = new_and_old_state()[::order]
    with Store(tmp_path) as store:
        run(store, specs)
        assert stored(store, specs) == alone(specs)


def test_jobs_have_several_stretches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def counted(job: Job, report: object) -> list[Outcome]:
        sizes.append(len(job.pieces))
        return execute(job, report)  # type: ignore[arg-type]

    monkeypatch.setattr("batchlab.runner.execute", counted)
    with Store(tmp_path) as store:
        run(store, family())
    assert max(sizes) == MOST


@pytest.mark.parametrize("first", [1, 2, 3])
def test_interrupted_at_different_points(tmp_path: Path, first: int) -> None:
    """The members of a group stand at different steps when they go on: those do so apart."""
    specs = [s for s in family() if s.schedule[0].batch_size == 48]
    calls = 0

    def stop() -> bool:
        nonlocal calls
        calls += 1
        return calls > first

    with Store(tmp_path) as store:
        with pytest.raises(Interrupted):
            run(store, specs[:3], stopping=stop)
        assert list((tmp_path / "partial").glob("*"))
        run(store, specs)
        assert stored(store, specs) == alone(specs)
    assert not list((tmp_path / "partial").glob("*"))


def test_trials_and_training_by_turns() -> None:
    order = [0, 1, 2, 3, 4, 5, 6]
    trials = [False, False, True, True, False, True, False]
    nothing = [None] * 7
    assert in_turns(order, trials, nothing) == [0, 2, 1, 3, 4, 5, 6]
    # What one waits for stands before it.
    after = [None, None, 1, 4, None, None, 5]
    made = in_turns(order, trials, after)
    assert made == [0, 1, 2, 4, 3, 5, 6]
