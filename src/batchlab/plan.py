"""What a set of runs comes down to: stretches of training, each trained once, and trials after.

Runs of one workload, model, seed and dtype whose schedules begin alike are one run with branches.
What names a stretch's end is its trajectory: all of the run up to there, whatever is measured on
the way. Pure functions; nothing is trained here and no file is read.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from math import ceil, gcd
from typing import Any, NamedTuple, Self

from batchlab.spec import Cadence, Phase, Spec, TrainSpec, TrialsSpec

Samples = Callable[[str], int]  # how many training samples a workload has


class Points(NamedTuple):
    """The steps at which a run is measured: `full`, or its `weights` alone."""

    full: frozenset[int] = frozenset()
    weights: frozenset[int] = frozenset()

    def with_(self, other: Self) -> "Points":
        """The points of both."""
        return Points(self.full | other.full, self.weights | other.weights)

    def cover(self, other: Self, last: int) -> bool:
        """Whether all that the other asks for up to step `last` is measured here."""
        full = {step for step in other.full if step <= last}
        weights = {step for step in other.weights if step <= last}
        return full <= self.full and weights <= self.full | self.weights


def points(spec: TrainSpec, samples: int) -> Points:
    """When the training loop measures this run: its start, epochs, ends of phases, steps."""
    full, step, epoch = {0}, 0, 0
    for phase in spec.schedule:
        per_epoch, length = ceil(samples / phase.batch_size), phase.step_count(samples)
        for ended in range(per_epoch, length, per_epoch):
            epoch += 1
            if epoch % spec.cadence.every == 0:
                full.add(step + ended)
        epoch += 1  # the last pass of a phase may be cut short and counts all the same
        step += length
        full.add(step)
    weights = {s for s in spec.cadence.steps if s <= step}
    return Points(frozenset(full), frozenset(weights - full))


def trajectory(spec: TrainSpec) -> TrainSpec:
    """What the run's weights depend on: neighbouring phases that differ in nothing are one."""
    update = {"schedule": joined(spec.schedule), "cadence": Cadence()}
    return spec.model_copy(update=update)


def joined(phases: Iterable[Phase]) -> tuple[Phase, ...]:
    """The same schedule with neighbouring phases of whole epochs and like settings made one."""
    whole: list[Phase] = []
    for phase in phases:
        before = whole[-1] if whole else None
        if before and before.epochs and phase.epochs and _unit(before) == _unit(phase):
            update = {"epochs": before.epochs + phase.epochs}
            whole[-1] = before.model_copy(update=update)
        else:
            whole.append(phase)
    return tuple(whole)


def epochs(schedule: Iterable[Phase], samples: int) -> float:
    """Passes over the data that a schedule makes; part of one where a phase ends within it."""
    total = 0.0
    for phase in schedule:
        whole, rest = divmod(phase.step_count(samples), ceil(samples / phase.batch_size))
        total += whole + rest * phase.batch_size / samples
    return total


def shared_steps(one: TrainSpec, other: TrainSpec, samples: int) -> int:
    """Steps that both runs begin with: where their trajectories part, or the shorter one ends."""
    if _family(one) != _family(other):
        return 0
    steps = 0
    for a, b in zip(joined(one.schedule), joined(other.schedule), strict=False):
        if a != b:
            if a.epochs and b.epochs and _unit(a) == _unit(b):
                steps += min(a.step_count(samples), b.step_count(samples))
            break
        steps += a.step_count(samples)
    return steps


@dataclass(frozen=True, slots=True)
class Stretch:
    """A piece of training that no other stretch repeats, and the runs that end with it."""

    spec: TrainSpec  # from the initial point to this end, measured as often as any run below asks
    begin: TrainSpec | None  # trajectory that it goes on from; None: the initial point
    after: int | None  # index of the stretch to wait for; None: what it goes on from is there
    runs: tuple[TrainSpec, ...]
    needs: Points  # what the runs from here on ask for
    keep: bool  # others go on from this end
    first: int  # step at which it begins
    steps: int

    @property
    def label(self) -> str:
        """The schedule up to its end, and the seed."""
        return f"{_said(self.spec.schedule)}, seed {self.spec.seed}"


@dataclass(frozen=True, slots=True)
class Trials:
    """Gradient trials, and the index of the stretch they wait for (None: its end is there)."""

    spec: TrialsSpec
    after: int | None

    @property
    def steps(self) -> int:
        """Steps of all trials."""
        return self.spec.step_count(0)

    @property
    def label(self) -> str:
        """The schedule before the trials, and the seed."""
        start = self.spec.start
        return f"trials after {_said(start.schedule)}, seed {start.seed}"


Piece = Stretch | Trials


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be done; a piece waits for one that stands before it, or for none."""

    pieces: tuple[Piece, ...]
    runs: tuple[Spec, ...]  # to be brought about
    stored: int  # that were asked for and are there already
    epochs_asked: float  # if every run were trained alone
    epochs_trained: float
    steps_trained: int

    @property
    def stretches(self) -> list[Stretch]:
        """The pieces that are training."""
        return [piece for piece in self.pieces if isinstance(piece, Stretch)]

    def said(self, seconds: float) -> str:
        """The plan in a line, with the time it is expected to take."""
        stored = f"; {_count(self.stored, 'stored run')} left out" if self.stored else ""
        if not self.runs:
            return f"plan: nothing to run{stored}"
        trials = sum(isinstance(run, TrialsSpec) for run in self.runs)
        of_trials = f" ({trials:,} of gradient trials)" if trials else ""
        return (
            f"plan: {_count(len(self.runs), 'run')}{of_trials}, {self.epochs_asked:,.6g} epochs "
            f"asked, {self.epochs_trained:,.6g} trained, about {_duration(seconds)}{stored}"
        )

    def json(self, seconds: float, costs: Sequence[float]) -> dict[str, Any]:
        """The plan as JSON: the totals, and a row a stretch."""
        rows = [
            {
                "spec": piece.spec.model_dump(mode="json"),
                "after": piece.after,
                "first_step": piece.first,
                "steps": piece.steps,
                "runs": [run.key for run in piece.runs],
                "seconds_estimated": cost,
            }
            for piece, cost in zip(self.pieces, costs, strict=True)
            if isinstance(piece, Stretch)
        ]
        return {
            "runs": len(self.runs),
            "trials": sum(isinstance(run, TrialsSpec) for run in self.runs),
            "stored": self.stored,
            "epochs_asked": self.epochs_asked,
            "epochs_trained": self.epochs_trained,
            "steps_trained": self.steps_trained,
            "seconds_estimated": seconds,
            "stretches": rows,
        }


def make_plan(
    wanted: Iterable[Spec],
    stored: Mapping[str, str],
    kept: Mapping[TrainSpec, Points],
    samples: Samples,
) -> Plan:
    """The pieces that bring about what is wanted and not stored.

    `stored` maps keys of stored runs to how they ended, `kept` the trajectories of which a
    checkpoint is there to what was measured on their way. Trials need the end of their start: where
    that was not kept the start is trained again; where it diverged they are left out.
    """
    asked = list(dict.fromkeys(wanted))
    missing = [s for s in asked if s.key not in stored]
    trials = [s for s in missing if isinstance(s, TrialsSpec)]
    trials = [s for s in trials if stored.get(s.start.key) != "diverged"]
    starts = {trajectory(s.start) for s in trials}
    runs = [s for s in missing if isinstance(s, TrainSpec)]
    for start in (s.start for s in trials):
        if start.key not in stored or trajectory(start) not in kept:
            runs.append(start)
    runs = list(dict.fromkeys(runs))
    stretches = _forest(runs, starts, kept, samples)
    ends = {trajectory(s.spec): index for index, s in enumerate(stretches)}
    pieces: list[Piece] = [*stretches]
    pieces += [Trials(s, ends.get(trajectory(s.start))) for s in trials]
    trained = 0.0
    for one in stretches:
        n = samples(one.spec.workload)
        before = one.begin.schedule if one.begin else ()
        trained += epochs(one.spec.schedule, n) - epochs(before, n)
    return Plan(
        pieces=tuple(pieces),
        runs=(*runs, *trials),
        stored=len(asked) - len(missing),
        epochs_asked=sum(epochs(s.schedule, samples(s.workload)) for s in runs),
        epochs_trained=trained,
        steps_trained=sum(s.steps for s in stretches),
    )


@dataclass(slots=True)
class _Node:
    """A stretch in the making: any two of them differ in what comes before their ends."""

    trajectory: TrainSpec
    parent: int | None
    runs: list[TrainSpec]  # end here
    below: list[TrainSpec] = field(default_factory=list)  # pass or end here, trained from here on
    needs: Points = field(default_factory=Points)
    there: bool = False  # a checkpoint has all that is needed


# A run and what of its schedule is still to be laid; no run: a checkpoint, where stretches part.
_Left = tuple[TrainSpec | None, tuple[Phase, ...]]


def _forest(
    runs: Sequence[TrainSpec],
    starts: AbstractSet[TrainSpec],
    kept: Mapping[TrainSpec, Points],
    samples: Samples,
) -> list[Stretch]:
    """The stretches of these runs, a parent before its children."""
    families: dict[TrainSpec, list[_Left]] = {}
    for run in runs:
        families.setdefault(_family(run), []).append((run, run.schedule))
    for one in kept:
        if _family(one) in families:
            families[_family(one)].append((None, one.schedule))
    stretches: list[Stretch] = []
    for entries in families.values():
        nodes = _tree(entries)
        _gather(nodes, kept, samples)
        stretches += _stretches(nodes, starts, samples, len(stretches))
    return stretches


def _tree(entries: list[_Left]) -> list[_Node]:
    """Nodes where the schedules part or end, a parent before its children."""
    nodes: list[_Node] = []
    root = next(run for run, _ in entries if run)
    todo: list[tuple[int | None, tuple[Phase, ...], list[_Left]]] = [(None, (), entries)]
    while todo:
        parent, trunk, left = todo.pop()
        groups: dict[Phase, list[_Left]] = {}
        for entry in left:
            groups.setdefault(_unit(entry[1][0]), []).append(entry)
        for group in groups.values():
            schedule, seam = trunk, False
            while not seam and all(rest for _, rest in group) and len(_heads(group)) == 1:
                schedule, group, seam = _advance(schedule, group)
            update = {"schedule": schedule, "cadence": Cadence()}
            ended = [run for run, rest in group if run and not rest]
            todo.append((len(nodes), schedule, [entry for entry in group if entry[1]]))
            nodes.append(_Node(root.model_copy(update=update), parent, ended))
    return nodes


def _advance(
    trunk: tuple[Phase, ...], group: list[_Left]
) -> tuple[tuple[Phase, ...], list[_Left], bool]:
    """Lay as much as all have in common; whether a run's phase ended within one of the trunk's.

    The run is measured at such a seam, where the joined schedule might not be: so a stretch ends.
    """
    unit = _unit(group[0][1][0])
    count = min(rest[0].epochs or 0 for _, rest in group)
    left: list[_Left] = []
    seam = False
    for run, (head, *tail) in group:
        more = (head.epochs or 0) - count
        if more:
            tail = [head.model_copy(update={"epochs": more}), *tail]
        elif tail and unit.epochs and _unit(tail[0]) == unit:
            seam = True
        left.append((run, tuple(tail)))
    laid = unit.model_copy(update={"epochs": count}) if unit.epochs else unit
    return joined((*trunk, laid)), left, seam


def _heads(group: list[_Left]) -> set[Phase]:
    return {_unit(rest[0]) for _, rest in group}


def _gather(nodes: list[_Node], kept: Mapping[TrainSpec, Points], samples: Samples) -> None:
    """From the leaves up: which runs each node serves, and where a checkpoint serves them."""
    for node in reversed(nodes):
        n = samples(node.trajectory.workload)
        node.below += node.runs
        for run in node.runs:
            node.needs = node.needs.with_(points(run, n))
        here = kept.get(node.trajectory)
        node.there = here is not None and here.cover(node.needs, node.trajectory.step_count(n))
        if node.parent is not None and not node.there:
            parent = nodes[node.parent]
            parent.below += node.below
            parent.needs = parent.needs.with_(node.needs)


def _stretches(
    nodes: list[_Node], starts: AbstractSet[TrainSpec], samples: Samples, offset: int
) -> list[Stretch]:
    """The nodes that have something to do; `offset` stretches stand before them."""
    branching = {node.parent for node in nodes if node.below and not node.there}
    indices: dict[int, int] = {}
    stretches: list[Stretch] = []
    for number, node in enumerate(nodes):
        if not (node.runs if node.there else node.below):
            continue
        parent = None if node.parent is None else nodes[node.parent]
        # What is there already is only read: the runs that end there are told from it.
        origin = node if node.there else parent
        begin = None if origin is None else origin.trajectory
        waits = not node.there and parent is not None and not parent.there
        n = samples(node.trajectory.workload)
        first = begin.step_count(n) if begin else 0
        every = gcd(*(run.cadence.every for run in node.below))
        steps = sorted({step for run in node.below for step in run.cadence.steps})
        cadence = Cadence(every=every, steps=tuple(steps))
        stretch = Stretch(
            spec=node.trajectory.model_copy(update={"cadence": cadence}),
            begin=begin,
            after=indices[node.parent] if waits and node.parent is not None else None,
            runs=tuple(node.runs),
            needs=node.needs,
            keep=not node.there and (number in branching or node.trajectory in starts),
            first=first,
            steps=node.trajectory.step_count(n) - first,
        )
        indices[number] = offset + len(stretches)
        stretches.append(stretch)
    return stretches


def _family(spec: TrainSpec) -> TrainSpec:
    """What runs must agree in to share a start, whatever their schedules and cadences."""
    update = {"schedule": (), "cadence": Cadence()}
    return spec.model_copy(update=update)


def _unit(phase: Phase) -> Phase:
    """One epoch of a phase in epochs; a phase in steps is shared as a whole or not at all."""
    return phase.model_copy(update={"epochs": 1}) if phase.epochs else phase


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _said(schedule: Iterable[Phase]) -> str:
    return ", then ".join(phase.label() for phase in schedule)
