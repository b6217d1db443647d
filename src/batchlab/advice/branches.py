"""Branches from checkpoints of the tuned run: other batch sizes, the rate retuned at each.

All branches of a seed go over the same samples in the same order, and are evaluated on the same
validation samples, so that what differs is the batch size. They start where training does and half
way to the target, and stand for its halves. A size has one rate for both places, the one with the
fewest samples over both: the best of a short run by itself is a low one, which quiets the noise and
then gets nowhere (Wu et al., Understanding short-horizon bias, 2018).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf, isfinite, isnan, nan
from typing import Any, NamedTuple

import torch

from batchlab.advice.present import PLACES, Present, Say
from batchlab.advice.rates import Rule
from batchlab.analysis.branches import ratio
from batchlab.engine.draws import derived, generator
from batchlab.engine.evaluation import evaluate
from batchlab.engine.general import GeneralRun
from batchlab.engine.settings import Settings, Snapshot
from batchlab.spec import UserError
from batchlab.workloads.prepared import Prepared
from batchlab.workloads.samples import Part, Samples

# More seeds than the fewest where they take no more than half of the cost, and up to the furthest
# where fewer do not decide. The first one chooses the rates, and is left out of what they come to:
# the best of several is best by luck as well.
SEEDS, MOST_SEEDS, FURTHEST = 5, 7, 13
COST = 7.0  # all branches together, about, in runs of the present setting
RUNS = 40  # of three sizes: about three and a half rates each, and the other seeds at the best
LONGEST = 3 / 4  # of the way to the target
MARKS = 10  # evaluations of a branch
LEAST_STEPS = 8  # of a branch at the largest size
FARTHEST = 8  # how many times smaller than the present size, as many small steps take long
STEP = 2.0  # of the grid of rates
EXTENSIONS = 3  # of the grid, where its best is at an end
HELD_OUT = 2048  # validation samples of an evaluation, at the most


class Branch(NamedTuple):
    """A short run; `samples` and `losses` (marks + 1) begin with 0 and the checkpoint's loss."""

    place: int
    batch_size: int
    multiplier: float  # of the rule's rate
    rate: float
    seed: int
    samples: tuple[int, ...]
    losses: tuple[float, ...]

    @property
    def last(self) -> float:
        """Its last loss; inf where it diverged."""
        return self.losses[-1] if isfinite(self.losses[-1]) else inf


@dataclass(slots=True)
class Branches:
    """All that were run, and the best multiplier of the rule's rate by size.

    `steps`: where on the tuned run the places are.
    """

    base: int
    seeds: int
    steps: tuple[int, ...]
    runs: list[Branch] = field(default_factory=list)
    best: dict[int, float] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        """Trained on in all."""
        return sum(run.samples[-1] for run in self.runs)

    def ratios(self, place: int | None = None) -> dict[float, list[float]]:
        """Samples to the same loss over the base's by size, a value a seed but the first.

        At a place, or the mean of all; places where neither came below the start are left out.
        """
        return {
            float(size): [self.ratio(size, best, seed, place) for seed in range(1, self.seeds)]
            for size, best in self.best.items()
        }

    def ratio(self, size: int, multiplier: float, seed: int, place: int | None = None) -> float:
        """Of one size, rate and seed; nan where there is nothing to tell.

        At a place it counts as between 1 and the size over the base, where samples are as many and
        where steps are: what lies beyond is a branch that took its noise for a loss of ground, or
        the base's that did.
        """
        least, most = sorted((1.0, size / self.base))
        told = []
        for at in range(len(self.steps)) if place is None else [place]:
            own = self._find(at, size, multiplier, seed)
            base = self._find(at, self.base, 1.0, seed)
            value = ratio(own.samples, own.losses, base.samples, base.losses)
            told.append(value if isnan(value) else min(max(value, least), most))
        there = [value for value in told if not isnan(value)]
        return sum(there) / len(there) if there else nan

    def _find(self, place: int, size: int, multiplier: float, seed: int) -> Branch:
        wanted = (place, size, multiplier, seed)
        return next(b for b in self.runs if (b.place, b.batch_size, b.multiplier, b.seed) == wanted)

    def json(self) -> dict[str, Any]:
        """A JSON object."""
        return {
            "base": self.base,
            "steps": self.steps,
            "samples": self.samples,
            "best_rate_over_rule": {str(size): best for size, best in self.best.items()},
            "runs": [b._asdict() for b in self.runs],
        }


class Plan(NamedTuple):
    """Which sizes, for how many samples each branch goes on, and how many seeds."""

    sizes: tuple[int, ...]
    samples: int
    seeds: int


def plan(tuned: Present, allowed: float, timed: Sequence[int], low: float, high: float) -> Plan:
    """The present size and two of the timed ones, spread over `low` to `high`.

    `allowed`: samples that all branches together may take. Raises `UserError` where no other size
    makes `LEAST_STEPS` steps on a branch.
    """
    base = tuned.settings.batch_size
    length = int(min(tuned.steps.effect * base * LONGEST, allowed / RUNS))
    above = [b for b in timed if 2 * base <= b <= length / LEAST_STEPS]
    below = [b for b in timed if base / FARTHEST <= b <= base / 2]

    def near(sizes: list[int], wanted: float) -> list[int]:
        return sorted(sizes, key=lambda b: max(b / wanted, wanted / b))[:1]

    chosen = {base, *near(above, high)}
    if low <= base / 2:
        chosen |= set(near(below, low))
    else:
        chosen |= set(near(above, (base * max(chosen)) ** 0.5))
    if len(chosen) < 2:
        raise UserError(
            f"--verify: {tuned.steps.effect:.0f} steps of {base} samples to the target are too few "
            f"to branch from; raise --budget or give a --target that takes longer"
        )
    spare = allowed / 2 / length - RUNS
    more = max(0, int(spare / (len(PLACES) * len(chosen))))
    return Plan(tuple(sorted(chosen)), length, min(SEEDS + more, MOST_SEEDS))


def branch(
    workload: Prepared,
    tuned: Present,
    rule: Rule,
    planned: Plan,
    *,
    micro: Callable[[int], int | None],
    enough: Callable[[Branches], bool],
    most: float,
    seed: int = 0,
    keep: Callable[[dict[str, Any]], object] = lambda _: None,
    say: Say = lambda _: None,
) -> Branches:
    """Run them: at each size rates around the rule's until the best is inside, on the first seed.

    The other seeds follow at the best rate; the present size keeps that of the tuned run. `micro`
    gives a size's micro-batch. While it is not `enough`, seeds are added, up to `FURTHEST`
    or `most` samples in all.
    """
    runner = _Runner(workload, _held_out(workload, seed), seed)
    places = tuned.snapshots
    base = tuned.settings.batch_size
    done = Branches(base, planned.seeds, tuple(s.place.step for s in places))

    def run(size: int, multiplier: float, repeat: int) -> float:
        settings = rule.settings(size, multiplier, micro(size))
        rate = settings.learning_rate or 0.0
        for place, snapshot in enumerate(places):
            told = runner.run(snapshot, settings, repeat, planned.samples)
            done.runs.append(Branch(place, size, multiplier, rate, repeat, *told))
        value = done.ratio(size, multiplier, repeat)
        return inf if isnan(value) else value

    for size in (base, *(b for b in planned.sizes if b != base)):
        grid = (1.0,) if size == base else (1.0, 1 / STEP, STEP)
        tried = {multiplier: run(size, multiplier, 0) for multiplier in grid}
        for _ in range(EXTENSIONS if size != base else 0):
            best = min(tried, key=lambda m: tried[m])
            inside = min(tried) < best < max(tried)
            if inside or done.samples + len(places) * planned.samples > most:
                break
            beyond = best * STEP if best == max(tried) else best / STEP
            tried[beyond] = run(size, beyond, 0)
        done.best[size] = best = min(tried, key=lambda m: tried[m])
        for repeat in range(1, planned.seeds):
            run(size, best, repeat)
        keep(done.json())
        say(
            f"batch size {size}: best at {best:g} times the rule's rate, {tried[best]:.2f} times "
            f"the samples of {base}"
        )
    seed_takes = len(done.best) * len(places) * planned.samples
    while done.seeds < FURTHEST and done.samples + seed_takes <= most:
        if enough(done):
            break
        for size, best in done.best.items():
            run(size, best, done.seeds)
        done.seeds += 1
        keep(done.json())
    return done


class _Runner:
    """One model, put back to a checkpoint for every branch."""

    def __init__(self, workload: Prepared, held_out: Samples, seed: int) -> None:
        self._workload, self._held_out, self._seed = workload, held_out, seed
        self._run = GeneralRun(workload, seed=seed)
        self._first: dict[int, float] = {}  # the checkpoints' losses, by step

    def run(
        self, start: Snapshot, settings: Settings, repeat: int, samples: int
    ) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """Samples and losses at the marks of a branch; inf from where it diverged."""
        run = self._run
        run.restore(start, seed=derived(self._seed, "branch", repeat))
        if start.place.step not in self._first:
            self._first[start.place.step] = self._evaluate()
        run.change(settings)
        begun = run.place.samples
        seen, losses = [0], [self._first[start.place.step]]
        for k in range(1, MARKS + 1):
            while run.place.samples - begun < samples * k / MARKS and run.status == "running":
                left = samples * k / MARKS - (run.place.samples - begun)
                run.advance(max(1, int(left // settings.batch_size)))
            if run.place.samples - begun == seen[-1]:
                continue  # a step goes past more than one mark
            seen.append(run.place.samples - begun)
            loss = self._evaluate() if run.status == "running" else inf
            losses.append(loss if isfinite(loss) else inf)
            if run.status == "diverged":
                break
        run.losses()
        return tuple(seen), tuple(losses)

    def _evaluate(self) -> float:
        return evaluate(self._run.model, self._workload, self._held_out).loss


def _held_out(workload: Prepared, seed: int) -> Samples:
    count = len(workload.validation)
    if count <= HELD_OUT:
        return workload.validation
    rows = torch.randperm(count, generator=generator(seed, "held out"))[:HELD_OUT]
    return Part(workload.validation, rows)
