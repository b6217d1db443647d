"""Gradient trials: the plain twin, and the identities that hold whatever the model."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from batchlab.engine.draws import trial_draw
from batchlab.engine.state import RunState
from batchlab.engine.train import initial_model, train
from batchlab.engine.trials import TrialState, _chunks, run_trials
from batchlab.record import FIRST_ORDER, PER_SAMPLE
from batchlab.spec import CONVENTIONS, Convention, TrialsSpec, UserError
from tests import toy

START = toy.spec(toy.phase(10), dtype="float64")
SIZES, SAMPLES, RATE = (1, 3, 4, 8, 24), 24, 0.05
Norms = dict[tuple[int, int, int, str], float]


def trials(**change: object) -> TrialsSpec:
    spec = TrialsSpec(
        start=START,
        batch_sizes=SIZES,
        samples=SAMPLES,
        draws=3,
        orders=2,
        learning_rate=RATE,
    )
    return spec.model_copy(update=change)


@pytest.fixture(scope="module")
def start() -> RunState:
    return train(START, toy.data(torch.float64))


def norms(spec: TrialsSpec, start: RunState, name: str = "norm") -> Norms:
    results = run_trials(spec, start, toy.data(torch.float64))
    return {
        (r.batch_size, r.draw, r.order, r.convention): r.value
        for r in results.records
        if r.name == name
    }


def plain(start: RunState, rows: torch.Tensor, size: int) -> dict[Convention, torch.Tensor]:
    """The pass as a reader would write it, with autograd; the displacement besides."""
    data = toy.data(torch.float64)
    out = {c: torch.zeros(()) for c in CONVENTIONS}
    for frozen in (True, False):
        model = initial_model(START, data)
        model.load_state_dict(start.group("model"))
        for batch in rows.split(size):
            loss = F.cross_entropy(model(data.train_x[batch]), data.train_y[batch])
            gradients = torch.autograd.grad(loss, list(model.parameters()))
            last = gradients[-2]
            kind = "frozen" if frozen else "stepping"
            out[f"mean-{kind}"] = out[f"mean-{kind}"] + last  # type: ignore[index]
            out[f"sum-{kind}"] = out[f"sum-{kind}"] + len(batch) * last  # type: ignore[index]
            if not frozen:
                if len(batch) == size:
                    out["mean-last"], out["sum-last"] = last, len(batch) * last
                with torch.no_grad():
                    for p, g in zip(model.parameters(), gradients, strict=True):
                        p.sub_(g, alpha=RATE)
    return out


def test_against_the_plain_loop(start: RunState) -> None:
    found = norms(trials(), start)
    for draw in range(3):
        for order in range(2):
            rows = trial_draw(START.seed, draw, order, SAMPLES, toy.SAMPLES)
            for size in SIZES:
                for convention, gradient in plain(start, rows, size).items():
                    here = found[size, draw, order, convention]
                    assert here == pytest.approx(float(gradient.norm()), rel=1e-10)


def by_size(found: Norms, convention: str, sizes: Sequence[int]) -> np.ndarray:
    return np.array(
        [[v for k, v in found.items() if k[0] == b and k[3] == convention] for b in sizes]
    )


def test_frozen_sum_does_not_depend_on_the_batch_size(start: RunState) -> None:
    found = norms(trials(), start)
    rows = by_size(found, "sum-frozen", SIZES)
    np.testing.assert_allclose(rows, np.broadcast_to(rows[0], rows.shape), rtol=1e-12)
    stepping = by_size(found, "sum-stepping", SIZES)
    assert not np.allclose(stepping, stepping[0], rtol=1e-3)


def test_frozen_mean_falls_as_one_over_the_batch_size(start: RunState) -> None:
    found = norms(trials(), start)
    whole = by_size(found, "sum-frozen", SIZES)
    dividing = [b for b in SIZES if SAMPLES % b == 0]
    assert dividing == list(SIZES)
    mean = by_size(found, "mean-frozen", SIZES)
    np.testing.assert_allclose(mean * np.array(SIZES)[:, None], whole, rtol=1e-12)


def test_a_short_last_batch_breaks_the_one_over_b(start: RunState) -> None:
    found = norms(trials(batch_sizes=(7,)), start)
    assert not np.allclose(
        7 * by_size(found, "mean-frozen", [7]), by_size(found, "sum-frozen", [7]), rtol=1e-6
    )


def test_rate_times_the_stepping_mean_is_the_displacement(start: RunState) -> None:
    found = norms(trials(), start)
    data = toy.data(torch.float64)
    for size in SIZES:
        rows = trial_draw(START.seed, 1, 1, SAMPLES, toy.SAMPLES)
        model = initial_model(START, data)
        model.load_state_dict(start.group("model"))
        before = list(model.parameters())[-2].detach().clone()
        optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
        for batch in rows.split(size):
            optimizer.zero_grad()
            F.cross_entropy(model(data.train_x[batch]), data.train_y[batch]).backward()
            optimizer.step()
        moved = float((list(model.parameters())[-2].detach() - before).norm())
        assert RATE * found[size, 1, 1, "mean-stepping"] == pytest.approx(moved, rel=1e-10)


def test_one_batch_of_all_samples_makes_the_readings_one(start: RunState) -> None:
    found = norms(trials(), start)
    for kind in ("mean", "sum"):
        frozen, stepping, last = (
            by_size(found, f"{kind}-{how}", [SAMPLES]) for how in ("frozen", "stepping", "last")
        )
        np.testing.assert_allclose(frozen, stepping, rtol=1e-12)
        np.testing.assert_allclose(frozen, last, rtol=1e-12)
    # and the order of the samples is then of no account
    orders = found[SAMPLES, 0, 0, "sum-stepping"], found[SAMPLES, 0, 1, "sum-stepping"]
    assert orders[0] == pytest.approx(orders[1], rel=1e-12)
    assert found[1, 0, 0, "sum-stepping"] != pytest.approx(found[1, 0, 1, "sum-stepping"], rel=1e-6)


def test_neighbours_do_not_matter(start: RunState, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = trials(detailed=1)
    alone = run_trials(spec, start, toy.data(torch.float64))
    right = {tuple(r[:6]): r.value for r in alone.records}
    # All at once; the two in detail, and four.
    monkeypatch.setattr("batchlab.engine.measure.Measure.bytes_each", lambda _, deep: 1 + deep)
    for room in (10.0, 6.0):
        monkeypatch.setattr("batchlab.engine.trials._room", lambda _, room=room: room)
        together = run_trials(spec, start, toy.data(torch.float64))
        found = {tuple(r[:6]): r.value for r in together.records}
        assert found.keys() == right.keys()
        for key, value in right.items():
            assert found[key] == pytest.approx(value, rel=1e-9, abs=1e-12, nan_ok=True), key


def test_chunks_are_what_there_is_room_for() -> None:
    spec = trials(detailed=1)  # of three draws in two orders
    every = [(draw, order) for draw in range(3) for order in range(2)]

    def sizes(done: int, room: float) -> list[int]:
        chunks = _chunks(spec, done, lambda deep: 1 + deep, room)
        assert [one for chunk in chunks for one in chunk] == every[done:]
        return [len(chunk) for chunk in chunks]

    assert sizes(0, 0.0) == [1] * 6
    assert sizes(0, 6.0) == [2, 4]  # a detailed one counts for two
    assert sizes(1, 6.0) == [5]
    assert sizes(2, 3.0) == [2, 2]
    assert sizes(6, 6.0) == []


def test_threads_do_not_matter_to_the_bit(start: RunState) -> None:
    threads = torch.get_num_threads()
    told = []
    for count in (1, 3):
        torch.set_num_threads(count)
        try:
            state = run_trials(trials(detailed=1), start, toy.data(torch.float64))
            assert torch.get_num_threads() == count
        finally:
            torch.set_num_threads(threads)
        told.append((repr(state.records), state.bins()))
    assert told[0] == told[1]


def test_the_draw_and_the_order_are_crossed() -> None:
    draws = [[trial_draw(0, draw, order, 24, 50) for order in range(3)] for draw in range(2)]
    for same in draws:
        assert len({tuple(rows.tolist()) for rows in same}) == 3
        assert len({tuple(rows.sort().values.tolist()) for rows in same}) == 1
    # the places are exchanged in the same way in both draws
    place = {int(row): k for k, row in enumerate(draws[0][0])}
    moved = [place[int(row)] for row in draws[0][1]]
    assert torch.equal(draws[1][0][moved], draws[1][1])


def test_detailed_draws(start: RunState) -> None:
    spec = trials(detailed=2)
    state = run_trials(spec, start, toy.data(torch.float64))
    every = {"0.weight", "2.weight", "4.weight"}
    for draw in range(3):
        of = [r for r in state.records if r.draw == draw]
        assert {r.layer for r in of if r.name == "norm"} == (every if draw < 2 else {"4.weight"})
        own = {r.name for r in of if r.convention == PER_SAMPLE}
        assert ("diversity" in own) == (draw < 2)
        assert ({r.name for r in of if r.convention == FIRST_ORDER} != set()) == (draw < 2)
    cosines = {
        (r.batch_size, r.name): r.value for r in state.records if r.name.startswith("cosine to")
    }
    assert len(cosines) == len(SIZES) * (len(SIZES) - 1) / 2
    assert all(-1 <= value <= 1 for value in cosines.values())
    pairs = sum(b.frequency for b in state.bins() if b.convention == PER_SAMPLE)
    assert pairs == 2 * SAMPLES * (SAMPLES - 1) / 2
    # the last layer's numbers do not depend on what else is measured
    plain = run_trials(trials(), start, toy.data(torch.float64)).records
    found = {tuple(r[:6]): r.value for r in state.records}
    for r in plain:
        assert found[tuple(r[:6])] == pytest.approx(r.value, rel=1e-12, nan_ok=True)


def test_the_samples_own_gradients_are_the_sum_of_a_batch_of_all(start: RunState) -> None:
    """Over one batch the sum's norm is what the diversity has in its denominator."""
    state = run_trials(trials(detailed=1), start, toy.data(torch.float64))
    own = {(r.layer, r.name): r.value for r in state.records if r.convention == PER_SAMPLE}
    assert own["all", "diversity"] == pytest.approx(1 + own["all", "noise_scale"], rel=1e-12)
    square = own["all", "gradient_square"] + own["all", "noise_trace"] / SAMPLES
    data = toy.data(torch.float64)
    model = initial_model(START, data)
    model.load_state_dict(start.group("model"))
    rows = trial_draw(START.seed, 0, 0, SAMPLES, toy.SAMPLES)
    loss = F.cross_entropy(model(data.train_x[rows]), data.train_y[rows])
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    assert square == pytest.approx(sum(float(g.square().sum()) for g in gradients), rel=1e-10)


def test_directions(start: RunState) -> None:
    """Against the full-data gradient and between batch sizes, from the gradients themselves."""
    kept: dict[tuple[int, int, int, str], torch.Tensor] = {}

    def keep(size: int, draw: int, order: int, convention: Convention, g: torch.Tensor) -> None:
        kept[size, draw, order, convention] = g.clone().flatten()

    data = toy.data(torch.float64)
    state = run_trials(trials(detailed=1), start, data, keep=keep)
    assert len(kept) == len(SIZES) * 3 * 2 * len(CONVENTIONS)
    model = initial_model(START, data)
    model.load_state_dict(start.group("model"))
    loss = F.cross_entropy(model(data.train_x), data.train_y)
    full = torch.autograd.grad(loss, list(model.parameters())[-2])[0].flatten()
    checked = 0
    for r in state.records:
        mine = kept.get((r.batch_size, r.draw, r.order, r.convention))
        if mine is None or r.layer != "4.weight" or not r.name.startswith("cosine"):
            continue
        to = r.name.removeprefix("cosine to ")
        other = full if r.name == "cosine" else kept[int(to), r.draw, r.order, r.convention]
        if not (mine.any() and other.any()):  # the zero vector has no direction
            assert np.isnan(r.value)
            continue
        assert r.value == pytest.approx(float(F.cosine_similarity(mine, other, dim=0)), rel=1e-9)
        checked += 1
    assert checked > len(SIZES) * 6 * 2


def test_a_pass_that_diverges_is_told_of(start: RunState) -> None:
    spec = trials(learning_rate=1e200, batch_sizes=(1, 24))
    state = run_trials(spec, start, toy.data(torch.float64))
    norms = {(r.batch_size, r.convention): r.value for r in state.records if r.name == "norm"}
    assert not np.isfinite(norms[1, "mean-stepping"])
    assert np.isfinite(norms[24, "mean-stepping"])
    counted = {(b.batch_size, b.convention) for b in state.bins()}
    assert (1, "mean-stepping") not in counted
    assert (24, "mean-stepping") in counted


def test_conventions_and_histograms(start: RunState) -> None:
    spec = trials(conventions=("sum-stepping",))
    ticks: list[int] = []
    results = run_trials(spec, start, toy.data(torch.float64), tick=ticks.append)
    assert {r.convention for r in results.records} == {"sum-stepping"}
    assert sum(ticks) == spec.step_count(toy.SAMPLES)
    for size in SIZES:
        values = sum(b.frequency for b in results.bins() if b.batch_size == size)
        assert values == 8 * toy.CLASSES * spec.trials


def test_no_trials_from_a_diverged_run(start: RunState) -> None:
    broken = RunState(start.tensors, start.position, start.records, "diverged")
    with pytest.raises(UserError, match="diverged"):
        run_trials(trials(), broken, toy.data(torch.float64))


def test_interrupted_is_uninterrupted_to_the_bit(start: RunState) -> None:
    data = toy.data(torch.float64)
    spec = trials(detailed=1)
    whole = run_trials(spec, start, data)
    kept: list[TrialState] = []
    state: TrialState | None = None
    stops = 0

    def save(now: TrialState) -> None:
        tensors = {name: counts.clone() for name, counts in now.tensors.items()}
        kept.append(TrialState.from_parts(tensors, now.meta()))

    while True:
        ticks = 0

        def tick(_: int) -> None:
            nonlocal ticks
            ticks += 1
            if ticks == 3:
                raise InterruptedError

        try:
            end = run_trials(spec, start, data, begun=state, tick=tick, save=save)
            break
        except InterruptedError:
            state = kept[-1]
            stops += 1
    assert stops == 2
    assert repr(end.records) == repr(whole.records)  # a gradient of zeros has kurtosis nan
    assert end.bins() == whole.bins()


def test_damaged_state(start: RunState) -> None:
    end = run_trials(trials(), start, toy.data(torch.float64))
    for field in ("done", "records", "seconds"):
        with pytest.raises(ValueError, match="not the state of trials"):
            TrialState.from_parts(end.tensors, {**end.meta(), field: "?"})
