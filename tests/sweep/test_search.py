"""The search for the best rate on functions whose best is known."""

from math import log2

import pytest

from batchlab.sweep.search import Range, Trial, best, edge, predicted, search


class Valley:
    """Steps 100 (1 + log2(rate / best)^2) up to four times the best rate; diverged above."""

    def __init__(self, at: float) -> None:
        self.at = at
        self.most: list[int | None] = []

    def __call__(self, rate: float, most: int | None) -> Trial:
        self.most.append(most)
        octaves = log2(rate / self.at)
        if octaves > 2:
            return Trial(rate, "diverged", 3, 0.0)
        steps = 100 * (1 + octaves**2)
        if most is not None and steps > most:
            return Trial(rate, "unreached", most, 1.0)
        return Trial(rate, "reached", steps, 0.0)


@pytest.mark.parametrize("off", [-2.5, 0.0, 2.5])
@pytest.mark.parametrize("seed", range(5))
def test_the_best_is_found(off: float, seed: int) -> None:
    trials = search(Range(0.1, 3.0), 12, seed, Valley(0.1 * 2**off))
    assert len(trials) == 12
    assert trials[0].rate == pytest.approx(0.1)
    assert best(trials).steps < 120


@pytest.mark.parametrize("seed", range(5))
def test_a_best_outside_of_the_first_range_is_followed(seed: int) -> None:
    valley = Valley(0.1 * 2**6)
    trials = search(Range(0.1, 3.0), 12, seed, valley)
    assert max(t.rate for t in trials[:4]) <= 0.8 < max(t.rate for t in trials)
    assert best(trials).steps < 300  # 3,700 at the first range's middle, 1,000 at its end


@pytest.mark.parametrize("seed", range(5))
def test_a_rate_close_by_that_lost_by_chance_is_no_wall(seed: int) -> None:
    valley = Valley(0.4)

    def unlucky(rate: float, most: int | None) -> Trial:
        """Above and below the centre nothing but 0.2 and more arrives."""
        if rate != pytest.approx(0.1) and rate < 0.2:
            return Trial(rate, "unreached", 1000, 1.0)
        return valley(rate, most)

    assert best(search(Range(0.1, 3.0), 15, seed, unlucky)).steps < 120


def test_no_trial_outlasts_the_best() -> None:
    capped = Valley(0.05)
    trials = search(Range(0.1, 3.0), 12, 1, capped)
    assert capped.most[0] is None
    assert min(m for m in capped.most if m is not None) >= best(trials).steps
    free = search(Range(0.1, 3.0), 12, 1, lambda rate, _: Valley(0.05)(rate, None))
    assert best(free) == best(trials)
    assert [t.rate for t in free] == [t.rate for t in trials]
    assert "unreached" in {t.outcome for t in trials} - {t.outcome for t in free}


def test_the_seed_chooses_the_rates() -> None:
    one, again, other = (search(Range(0.1, 3), 7, s, Valley(0.1)) for s in (1, 1, 2))
    assert one == again
    assert one != other


def test_where_nothing_is_reached() -> None:
    near = search(Range(0.1, 3.0), 9, 0, lambda r, _: Trial(r, "unreached", 9, abs(log2(r))))
    assert 0.5 < best(near).rate < 2  # the gap's least is at 1
    apart = search(Range(0.1, 3.0), 9, 0, lambda r, _: Trial(r, "diverged", 1, 0.0))
    assert best(apart).rate < 0.1 / 3  # nothing is known of where to go but down
    assert edge(apart) == "lowest"
    assert edge(near[:1]) == "lowest"
    up = [Trial(0.1, "reached", 9, 0), Trial(0.2, "reached", 8, 0)]
    assert edge(up) == "highest"
    assert edge([*up, Trial(0.4, "diverged", 1, 0)]) == ""


def test_ranges_hold_what_the_rules_allow() -> None:
    sgd = predicted(0.1, 32, 512, adaptive=False)
    assert sgd.centre == pytest.approx(0.4)  # between 0.1 and 1.6
    assert sgd.octaves == pytest.approx(3 + 2)
    assert predicted(0.1, 32, 2, adaptive=False).centre == pytest.approx(0.025)
    assert predicted(0.1, 32, 32, adaptive=False) == pytest.approx((0.1, 3))
    adam = predicted(0.001, 32, 512, adaptive=True)
    assert adam == pytest.approx((0.004, 3))
