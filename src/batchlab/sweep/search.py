"""The learning rate that takes the fewest steps at one batch size, searched for afresh.

Quasi-random rates (Optuna's scrambled Sobol sequence), log-uniform, in three rounds of as many
trials. The first goes over a wide range about the rate that a rule predicts. Every further one goes
from the best so far, to each side, as far as to the next rate tried, but no less far than the rates
of the round before were apart on average, as a rate close by may have lost by chance; where no rate
was tried beyond the best, as far as the first round went: the search is then centred anew. However
the rounds go, every batch size has as many trials.
"""

import warnings
from collections.abc import Callable, Generator, Sequence
from math import ceil, inf, log2
from typing import Literal, NamedTuple

from batchlab.analysis.intervals import Interval
from batchlab.analysis.learning_rate import adam, sgd
from batchlab.engine.draws import derived

ROUNDS = 3
OCTAVES = 3.0  # to each side of what the rules allow, in the first round

Edge = Literal["", "lowest", "highest"]


class Trial(NamedTuple):
    """What a rate came to: steps taken, and how far from the target its best value was left."""

    rate: float
    outcome: str
    steps: float
    gap: float


class Range(NamedTuple):
    """Learning rates within so many octaves of the centre, to each side."""

    centre: float
    octaves: float


def predicted(rate: float, size: int, other: int, adaptive: bool) -> Range:
    """Where the best rate at batch size `other` is looked for, `rate` being that at `size`.

    SGD's rule without a noise scale says no more than: between the same rate and one in proportion
    to the batch; the range is centred between them and holds both. For `adaptive`
    ones it is the square root.
    """
    if adaptive:
        return Range(adam(rate, 0.999, size, other).rate, OCTAVES)
    ends = sgd(rate, size, other, Interval(1.0, 0.0, inf, 0))
    spread = log2(ends.high / ends.low) / 2
    return Range((ends.low * ends.high) ** 0.5, OCTAVES + spread)


def best(trials: Sequence[Trial]) -> Trial:
    """The fewest steps; where none reached the target, the nearest to it; the lowest rate where all
    diverged."""
    order = {"reached": 0, "unreached": 1, "diverged": 2}

    def key(trial: Trial) -> tuple[int, float]:
        value = {"reached": trial.steps, "unreached": trial.gap, "diverged": trial.rate}
        return order[trial.outcome], value[trial.outcome]

    return min(trials, key=key)


def edge(trials: Sequence[Trial]) -> Edge:
    """Whether the best rate is the lowest or the highest of all tried, those that diverged too."""
    rates, found = [t.rate for t in trials], best(trials).rate
    return "lowest" if found == min(rates) else "highest" if found == max(rates) else ""


def search(
    start: Range, count: int, seed: int, run: Callable[[float, int | None], Trial]
) -> list[Trial]:
    """`count` trials of `run(rate, most steps)`.

    No trial is run for more steps than the best so far took, as it could not beat that: the fewest
    steps are those of a search without this.
    """
    done: list[Trial] = []
    low, high = start.centre / 2**start.octaves, start.centre * 2**start.octaves
    before = 1
    for number, share in enumerate(_shares(count)):
        if done:
            low, high = _around(done, start.octaves, log2(high / low) / max(2, before))
        before = share
        middle = best(done).rate if done else start.centre
        tell = _asked(low, high, middle, derived(seed, "rates", number), known=bool(done))
        rate = next(tell)
        for place in range(share):
            reached = [t.steps for t in done if t.outcome == "reached"]
            done.append(run(rate, ceil(min(reached)) if reached else None))
            if place < share - 1:
                rate = tell.send(done[-1])
    return done


def _around(done: Sequence[Trial], beyond: float, apart: float) -> tuple[float, float]:
    """From the next rate below the best to the next above, `apart` octaves to each side at least;
    `beyond` octaves where there is none."""
    found = best(done).rate
    below = [t.rate for t in done if t.rate < found]
    above = [t.rate for t in done if t.rate > found]
    low = min(max(below), found / 2**apart) if below else found / 2**beyond
    high = max(min(above), found * 2**apart) if above else found * 2**beyond
    return low, high


def _shares(count: int) -> list[int]:
    """How many trials every round has, the first ones of the larger shares."""
    return [share for k in range(ROUNDS) if (share := (count + ROUNDS - 1 - k) // ROUNDS)]


def _asked(
    low: float, high: float, middle: float, seed: int, *, known: bool
) -> Generator[float, Trial, None]:
    """Rates of one round, each asked of Optuna after it was told the last; `middle` is the first
    unless it is `known`."""
    import optuna  # here: its import takes a while

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    within: dict[str, optuna.distributions.BaseDistribution] = {
        "rate": optuna.distributions.FloatDistribution(low, high, log=True)
    }
    with warnings.catch_warnings():
        # Experimental since 2021, of the same signature.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.QMCSampler(scramble=True, seed=seed % 2**32)
    study = optuna.create_study(sampler=sampler)
    if known:  # it tells the sampler the range, too
        study.add_trial(
            optuna.create_trial(params={"rate": middle}, distributions=within, value=0.0)
        )
    else:
        study.enqueue_trial({"rate": middle})
    while True:
        asked = study.ask(within)
        told = yield float(asked.params["rate"])
        if told.outcome == "reached":
            study.tell(asked, told.steps)
        else:
            study.tell(asked, state=optuna.trial.TrialState.PRUNED)
