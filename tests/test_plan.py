"""The plan: every stretch once, whatever the schedules, by counts made in another way."""

from collections import Counter
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchlab.laboratory import Request
from batchlab.lockstep import chains, estimate
from batchlab.plan import (
    Plan,
    Points,
    Stretch,
    epochs,
    make_plan,
    points,
    trajectory,
)
from batchlab.spec import Cadence, Optimizer, Phase, Spec, TrainSpec, TrialsSpec
from batchlab.studies import STUDIES
from batchlab.workloads import workload
from tests import toy

HEAVY = Optimizer(momentum=0.9)


def samples(_: str) -> int:
    return toy.SAMPLES


def plan(*specs: Spec, **given: object) -> Plan:
    return make_plan(specs, given.get("stored", {}), given.get("kept", {}), samples)  # type: ignore[arg-type]


def units(spec: TrainSpec) -> list[tuple[object, ...]]:
    """The run epoch by epoch (a phase in steps is one), each with all that came before it."""
    told: list[object] = []
    whole = []
    for phase in spec.schedule:
        settings = (phase.batch_size, phase.learning_rate, phase.optimizer)
        for _ in range(phase.epochs or 1):
            told.append((settings, phase.steps))
            whole.append((spec.workload, spec.model, spec.seed, spec.dtype, *told))
    return whole


def trained(plan: Plan) -> Counter[tuple[object, ...]]:
    """How often each of the units is trained by the plan."""
    counts: Counter[tuple[object, ...]] = Counter()
    for stretch in plan.stretches:
        before = len(units(stretch.begin)) if stretch.begin else 0
        counts.update(units(stretch.spec)[before:])
    return counts


def once(specs: list[TrainSpec], plan: Plan) -> bool:
    """Whether the plan trains all that the runs consist of, and nothing twice."""
    asked = {unit for spec in specs for unit in units(spec)}
    return trained(plan) == Counter(asked)


def request(name: str, seeds: int) -> list[Spec]:
    protocol = workload(name).protocol
    return Request(protocol=protocol, seeds=seeds, studies=tuple(STUDIES)).specs()


@pytest.mark.parametrize(
    ("name", "seeds", "asked", "least"), [("mnist", 1, 1113, 930), ("digits", 5, 5565, 4650)]
)
def test_the_articles_suite_trains_no_stretch_twice(
    name: str, seeds: int, asked: int, least: int
) -> None:
    specs = request(name, seeds)
    runs = [s for s in specs if isinstance(s, TrainSpec)]
    made = make_plan(specs, {}, {}, lambda name: workload(name).protocol.train_samples)
    assert once(runs, made)
    assert sum(len(units(run)) for run in runs) == asked == made.epochs_asked
    assert len({unit for run in runs for unit in units(run)}) == least
    assert made.epochs_trained == pytest.approx(least)
    assert f"{asked:,} epochs asked, {least:,} trained" in made.said(60)


def test_the_count_sees_a_stretch_trained_twice() -> None:
    specs = [toy.spec(toy.phase(10, epochs=n)) for n in (3, 6)]
    alone = [plan(s) for s in specs]
    both = Plan(tuple(p for a in alone for p in a.pieces), (), 0, 9, 9, 45)
    assert not once(specs, both)
    assert once(specs, plan(*specs))


PHASES = st.builds(
    lambda size, rate, optimizer, length: Phase(
        batch_size=size, learning_rate=rate, optimizer=optimizer, **length
    ),
    st.sampled_from([7, 10]),
    st.sampled_from([0.1, 0.2]),
    st.sampled_from([Optimizer(), HEAVY]),
    st.one_of(
        st.builds(lambda n: {"epochs": n}, st.integers(1, 4)),
        st.builds(lambda n: {"steps": n}, st.integers(1, 12)),
    ),
)
CADENCES = st.builds(
    lambda every, steps: Cadence(every=every, steps=tuple(sorted(steps))),
    st.integers(1, 4),
    st.sets(st.integers(1, 40), max_size=4),
)
RUNS = st.lists(
    st.builds(
        lambda phases, seed, cadence: toy.spec(*phases, seed=seed, cadence=cadence),
        st.lists(PHASES, min_size=1, max_size=3),
        st.integers(0, 1),
        CADENCES,
    ),
    min_size=1,
    max_size=8,
    unique=True,
)


@given(RUNS)
def test_any_schedules(specs: list[TrainSpec]) -> None:
    made = plan(*specs)
    assert once(specs, made)
    assert sorted(r.key for s in made.stretches for r in s.runs) == sorted(s.key for s in specs)
    for index, stretch in enumerate(made.stretches):
        assert stretch.steps > 0
        if stretch.after is None:
            assert stretch.begin is None
            assert stretch.first == 0
        else:
            parent = made.stretches[stretch.after]
            assert stretch.after < index
            assert parent.keep
            assert stretch.begin == trajectory(parent.spec)
            assert stretch.first == parent.spec.step_count(toy.SAMPLES)
        for run in stretch.runs:
            assert trajectory(run) == trajectory(stretch.spec)
            assert measured(made, index).cover(points(run, toy.SAMPLES), 10**9)


def measured(made: Plan, index: int) -> Points:
    """All points that are measured on the way to the end of a stretch."""
    told, here = Points(), made.stretches[index]
    while True:
        within = points(here.spec, toy.SAMPLES)
        last = here.spec.step_count(toy.SAMPLES)
        told = told.with_(
            Points(*(frozenset(s for s in of if here.first < s <= last) for of in within))
        )
        if here.after is None:
            return told.with_(Points(frozenset({0})))
        here = made.stretches[here.after]


@given(RUNS, st.data())
def test_what_is_kept_is_not_trained_again(specs: list[TrainSpec], data: st.DataObject) -> None:
    whole = plan(*specs)
    done = data.draw(st.sets(st.sampled_from(range(len(whole.stretches)))))
    ends = {i: trajectory(whole.stretches[i].spec) for i in done if whole.stretches[i].keep}
    kept = {end: measured(whole, index) for index, end in ends.items()}
    there = {unit for end in ends.values() for unit in units(end)}
    again = trained(plan(*specs, kept=kept))
    asked = {unit for spec in specs for unit in units(spec)}
    assert max(again.values(), default=1) == 1
    # What lies before a kept end is trained again only where a run leaves it on the way.
    assert asked - there <= set(again)
    for end in ends.values():
        assert units(end)[-1] not in again


def test_a_kept_end_that_was_measured_too_seldom_is_trained_again() -> None:
    long = toy.spec(toy.phase(10, epochs=6), cadence=Cadence(every=2))
    start = trajectory(toy.spec(toy.phase(10, epochs=4)))
    made = plan(long, kept={start: points(start, toy.SAMPLES)})
    assert [s.first for s in made.stretches] == [20]
    seldom = Points(frozenset({0, 20}))
    made = plan(long, kept={start: seldom})
    assert [s.first for s in made.stretches] == [0, 20]


def test_a_run_whose_trajectory_is_kept_is_only_read() -> None:
    run = toy.spec(toy.phase(10, epochs=4), cadence=Cadence(every=2))
    end = trajectory(run)
    (only,) = plan(run, kept={end: points(run, toy.SAMPLES)}).stretches
    assert (only.steps, only.begin, only.runs) == (0, end, (run,))


def test_phases_that_differ_in_nothing_are_one() -> None:
    halves = toy.spec(toy.phase(10, epochs=1), toy.phase(10, epochs=2), cadence=Cadence(every=9))
    whole = toy.spec(toy.phase(10, epochs=3), cadence=Cadence(every=9))
    assert trajectory(halves) == trajectory(whole)
    assert once([halves, whole], plan(halves, whole))


@pytest.mark.parametrize(
    "other",
    [
        toy.spec(toy.phase(9)),
        toy.spec(toy.phase(10, rate=0.06)),
        toy.spec(toy.phase(10, optimizer=HEAVY)),
        toy.spec(toy.phase(10), seed=1),
        toy.spec(toy.phase(10), dtype="float64"),
        toy.spec(toy.phase(10, steps=15)),
    ],
)
def test_what_is_not_a_common_start(other: TrainSpec) -> None:
    made = plan(toy.spec(toy.phase(10)), other)
    assert [s.after for s in made.stretches] == [None, None]


def test_trials_wait_for_their_start() -> None:
    start = toy.spec(toy.phase(10, epochs=2))
    trials = TrialsSpec(start=start, batch_sizes=(2,), samples=8, draws=2, learning_rate=0.1)
    made = plan(trials, toy.spec(toy.phase(10, epochs=5)))
    waiting = made.pieces[-1]
    assert waiting.after is not None
    on = made.pieces[waiting.after]
    assert isinstance(on, Stretch)
    assert on.keep
    assert on.runs == (start,)
    stored = {start.key: "finished"}
    assert plan(trials, stored=stored).stretches  # its end was not kept
    (only,) = plan(trials, stored=stored, kept={trajectory(start): Points()}).pieces
    assert only.after is None
    left_out = plan(trials, stored={start.key: "diverged"})
    assert not left_out.pieces
    assert "nothing to run" in left_out.said(0)


def test_points_of_a_cut_pass() -> None:
    spec = toy.spec(
        toy.phase(20, steps=4), toy.phase(10, epochs=3), cadence=Cadence(every=2, steps=(2, 4, 99))
    )
    # Passes end at steps 3, 4 (cut short by its phase), 9, 14 and 19: the fourth of them at 14.
    assert points(spec, 50) == (frozenset({0, 4, 14, 19}), frozenset({2}))
    assert epochs(spec.schedule, 50) == pytest.approx(1 + 20 / 50 + 3)
    assert epochs(spec.schedule[1:], 50) == ceil(15 / 5)


def test_the_estimate_is_never_less_than_a_chain() -> None:
    costs, after = [1.0, 4.0, 2.0, 1.0], [None, 0, 0, 2]
    assert chains(costs, after) == [5.0, 4.0, 3.0, 1.0]
    assert estimate(costs, after, 1) == 8
    assert estimate(costs, after, 8) == 5


def test_said_and_json() -> None:
    run = toy.spec(toy.phase(10, epochs=2))
    made = plan(run, toy.spec(toy.phase(10, epochs=3)), stored={run.key: "finished"})
    assert made.said(7300) == (
        "plan: 1 run, 3 epochs asked, 3 trained, about 2 h 2 min; 1 stored run left out"
    )
    told = made.json(7300, [1.5])
    assert told["stretches"][0]["steps"] == 15
    assert told["stretches"][0]["seconds_estimated"] == 1.5
    assert (told["runs"], told["stored"], told["steps_trained"]) == (1, 1, 15)
