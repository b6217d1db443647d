"""Branches from checkpoints of the present run: other batch sizes, the rate retuned at each.

All branches of a seed go over the same samples in the same order, and are evaluated on the same
validation samples, so that what differs is the batch size. Two places along the run stand for its
halves: the middle of each half of the way to the target.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import exp, inf, isfinite, log, nan
from typing import Any, NamedTuple

import torch

from batchlab.advice.present import Present, Say
from batchlab.advice.rates import Rule
from batchlab.analysis.branches import ratio
from batchlab.engine.draws import derived, generator
from batchlab.engine.evaluation import evaluate
from batchlab.engine.general import GeneralRun
from batchlab.engine.settings import Settings, Snapshot
from batchlab.spec import UserError
from batchlab.workloads.prepared import Prepared
from batchlab.workloads.samples import Part, Samples

PLACES = (1 / 4, 3 / 4)  # of the steps to the target
SEEDS = 3
COST = 7.0  # all branches together, in runs of the present setting to its target
TRIES = 6  # runs at a size and place: about four rates, and the other seeds at the best
MARKS = 6  # evaluations of a branch
LEAST_STEPS = 6  # of a branch at the largest size
LONGEST = 1 / 4  # of the way to the target
STEP = 2.0  # of the grid of rates
EXTENSIONS = 3  # of the grid, where its best is at an end
HELD_OUT = 4096  # validation samples of an evaluation, at the most


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
    """All that were run, and the best multiplier of the rule's rate by place and size.

    `steps`: where on the present run the places are.
    """

    base: int
    steps: tuple[int, ...]
    runs: list[Branch] = field(default_factory=list)
    best: dict[tuple[int, int], float] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        """Trained on in all."""
        return sum(run.samples[-1] for run in self.runs)

    def ratios(self) -> dict[float, list[float]]:
        """Samples to the same loss over the base's by size, a value a seed: the places' mean.

        Places where neither came below the start tell nothing and are left out.
        """
        told = {}
        for size in sorted({b for _, b in self.best}):
            of_seeds = []
            for seed in range(SEEDS):
                values = [v for p in self.places() if (v := self._ratio(p, size, seed)) == v]
                of_seeds.append(sum(values) / len(values) if values else nan)
            told[float(size)] = of_seeds
        return told

    def place_ratios(self, place: int) -> dict[float, list[float]]:
        """The same at one place."""
        sizes = sorted({b for p, b in self.best if p == place})
        return {float(b): [self._ratio(place, b, s) for s in range(SEEDS)] for b in sizes}

    def gain(self) -> float:
        """Samples to the same loss at the base's best rate over those at the present rate.

        Of the first seed, the places' mean; 1 where the present rate is the best.
        """
        values = []
        for place in self.places():
            best = self._find(place, self.base, self.best[place, self.base], 0)
            present = self._find(place, self.base, 1.0, 0)
            told = ratio(best.samples, best.losses, present.samples, present.losses)
            if 0 < told < inf:
                values.append(told)
        return sum(values) / len(values) if values else 1.0

    def multiplier(self) -> float:
        """The base's best rate over the present one: the places' geometric mean."""
        logs = [log(self.best[place, self.base]) for place in self.places()]
        return exp(sum(logs) / len(logs))

    def places(self) -> list[int]:
        """Those run at, in order."""
        return sorted({p for p, _ in self.best})

    def _find(self, place: int, size: int, multiplier: float, seed: int) -> Branch:
        wanted = (place, size, multiplier, seed)
        return next(b for b in self.runs if (b.place, b.batch_size, b.multiplier, b.seed) == wanted)

    def _ratio(self, place: int, size: int, seed: int) -> float:
        if (place, size) not in self.best:
            return nan
        own = self._find(place, size, self.best[place, size], seed)
        base = self._find(place, self.base, self.best[place, self.base], seed)
        return ratio(own.samples, own.losses, base.samples, base.losses)

    def json(self) -> dict[str, Any]:
        """A JSON object."""
        return {
            "base": self.base,
            "samples": self.samples,
            "runs": [b._asdict() for b in self.runs],
        }


class Plan(NamedTuple):
    """Which sizes, and for how many samples each branch goes on."""

    sizes: tuple[int, ...]
    samples: int


def plan(present: Present, timed: Sequence[int], low: float, high: float) -> Plan:
    """Up to four of the timed sizes, spread evenly over `low` to `high`, and the present one.

    Raises `UserError` where the way to the target is so short that no other size makes
    `LEAST_STEPS` steps on a branch.
    """
    base = present.settings.batch_size
    way = present.steps.effect * base
    for count in (4, 3, 2):
        length = int(way * min(LONGEST, COST / (len(PLACES) * count * TRIES)))
        able = [b for b in timed if b * LEAST_STEPS <= length and (b >= 2 * base or 2 * b <= base)]
        first, last = max(low, 1.0), max(low, high)
        wanted = [first * (last / first) ** (k / max(1, count - 1)) for k in range(count)]
        chosen: list[int] = []
        for w in wanted[::-1]:
            near = sorted(able, key=lambda b: max(b / w, w / b))
            if near and near[0] not in chosen and len(chosen) < count - 1:
                chosen.append(near[0])
        if chosen:
            return Plan(tuple(sorted({base, *chosen})), length)
    raise UserError(
        f"--verify: {present.steps.effect:.0f} steps to the target are too few to branch from; "
        f"raise --budget or give a --target that takes longer"
    )


def branch(
    workload: Prepared,
    present: Present,
    rule: Rule,
    planned: Plan,
    *,
    micro: Callable[[int], int | None],
    seed: int = 0,
    keep: Callable[[dict[str, Any]], object] = lambda _: None,
    say: Say = lambda _: None,
) -> Branches:
    """Run them: at each place and size rates around the rule's until the best is inside.

    The grid is tuned on the first seed; the others follow at the best rate. `micro` gives a size's
    micro-batch.
    """
    runner = _Runner(workload, _held_out(workload, seed), seed)
    places = _places(present)
    done = Branches(present.settings.batch_size, tuple(s.place.step for s in places))
    order = [done.base, *(b for b in planned.sizes if b != done.base)]
    for place, snapshot in enumerate(places):
        runner.stand(snapshot)
        for size in order:
            # Rates are found in multiples of the rule's, from where the base's best was.
            before = done.best.get((place - 1, size))
            centre = before or (done.best[place, done.base] if size != done.base else 1.0)

            def run(multiplier: float, repeat: int, size: int = size, place: int = place) -> Branch:
                settings = rule.settings(size, multiplier, micro(size))
                told = runner.run(settings, repeat, planned.samples)
                made = Branch(place, size, multiplier, settings.learning_rate or 0.0, repeat, *told)
                done.runs.append(made)
                return made

            tried = {centre * f: run(centre * f, 0) for f in (1.0, 1 / STEP, STEP)}
            for _ in range(EXTENSIONS):
                best = min(tried, key=lambda m: tried[m].last)
                beyond = best * STEP if best == max(tried) else best / STEP
                if beyond in tried or min(tried) < best < max(tried):
                    break
                tried[beyond] = run(beyond, 0)
            best = min(tried, key=lambda m: tried[m].last)
            done.best[place, size] = best
            if size == done.base and 1.0 not in tried:
                run(1.0, 0)
            for repeat in range(1, SEEDS):
                run(best, repeat)
            keep(done.json())
            say(
                f"branch {place + 1} of {len(PLACES)}, batch size {size}: best rate {best:g} times "
                f"the rule's, loss {tried[best].last:.4g}"
            )
    return done


class _Runner:
    """One model, put back to a checkpoint for every branch."""

    def __init__(self, workload: Prepared, held_out: Samples, seed: int) -> None:
        self._workload, self._held_out, self._seed = workload, held_out, seed
        self._run = GeneralRun(workload, seed=seed)
        self._start: Snapshot | None = None
        self._loss = nan

    def stand(self, snapshot: Snapshot) -> None:
        """The checkpoint that the branches to come start from."""
        self._start = snapshot
        self._run.restore(snapshot)
        self._loss = self._evaluate()

    def run(
        self, settings: Settings, repeat: int, samples: int
    ) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """Samples and losses at the marks of a branch; inf from where it diverged."""
        assert self._start is not None
        run = self._run
        run.restore(self._start, seed=derived(self._seed, "branch", repeat))
        run.change(settings)
        begun = run.place.samples
        seen, losses = [0], [self._loss]
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


def _places(present: Present) -> list[Snapshot]:
    """The nearest checkpoints to `PLACES` of the way, each once."""
    wanted = [share * present.steps.effect for share in PLACES]
    near = [min(present.snapshots, key=lambda s, w=w: abs(s.place.step - w)) for w in wanted]  # type: ignore[misc]
    return list({s.place.step: s for s in near}.values())


def _held_out(workload: Prepared, seed: int) -> Samples:
    count = len(workload.validation)
    if count <= HELD_OUT:
        return workload.validation
    rows = torch.randperm(count, generator=generator(seed, "held out"))[:HELD_OUT]
    return Part(workload.validation, rows)
