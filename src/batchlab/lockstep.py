"""Which pieces of a plan are done side by side, as one job; and the time all jobs take together.

Pure functions.
"""

from collections import deque
from collections.abc import Callable, Sequence
from itertools import pairwise
from math import ceil

from batchlab.plan import Piece, Stretch
from batchlab.spec import Optimizer, TrainSpec

# Runs of a group: of more replicas the weights leave a CPU's cache before they are used again.
MOST = {"cpu": 4, "cuda": 8}

Group = tuple[int, ...]  # indices of pieces, in their order


def groups(
    pieces: Sequence[Piece], stacks: Callable[[Stretch], bool], workers: int, most: int
) -> tuple[Group, ...]:
    """The pieces in groups, by their first; a group waits for one group or for none.

    Stretches stand in one group where `stacks` says that it pays, they are of one shape, and what
    they wait for stands in one group too. So that no worker is left without work, alike stretches
    are divided among `workers`; no group is of more than `most`.
    """
    made: list[Group] = []
    group_of: dict[int, int] = {}
    alike: dict[object, list[int]] = {}
    for index, piece in enumerate(pieces):
        if isinstance(piece, Stretch) and stacks(piece):
            alike.setdefault(_likeness(piece, pieces), []).append(index)
        else:
            alike[index] = [index]
    todo = list(alike.values())
    while todo:  # pieces of one likeness may wait for different groups
        left = []
        for like in todo:
            waiting: dict[int | None, list[int]] = {}
            for index in like:
                after = pieces[index].after
                if after is not None and after not in group_of:
                    left.append(like)
                    break
                waiting.setdefault(None if after is None else group_of[after], []).append(index)
            else:
                for members in waiting.values():
                    size = min(most, ceil(len(members) / workers))
                    for begin in range(0, len(members), size):
                        group = tuple(members[begin : begin + size])
                        group_of |= dict.fromkeys(group, len(made))
                        made.append(group)
        todo = left
    return tuple(made)


def chains(costs: Sequence[float], after: Sequence[int | None]) -> list[float]:
    """For each piece its cost and that of the longest chain of pieces that waits for it."""
    longest = list(costs)
    for index in reversed(range(len(costs))):
        other = after[index]
        if other is not None:
            longest[other] = max(longest[other], costs[other] + longest[index])
    return longest


def in_turns(
    order: Sequence[int], trials: Sequence[bool], after: Sequence[int | None]
) -> list[int]:
    """Trials and other pieces by turns, each in their order, as far as what they wait for allows.

    For a GPU that several workers share: trials wait for its memory, most training for its
    arithmetic or for one small kernel after another, so that one of each go well together.
    """
    queues = {kind: deque(index for index in order if trials[index] == kind) for kind in (0, 1)}
    made: list[int] = []
    placed: set[int | None] = {None}
    turn = 0
    while any(queues.values()):
        ready = [kind for kind in (turn, 1 - turn) if queues[kind]]
        ready = [kind for kind in ready if after[queues[kind][0]] in placed]
        made.append(queues[ready[0]].popleft())
        placed.add(made[-1])
        turn = 1 - ready[0]
    return made


def estimate(costs: Sequence[float], after: Sequence[int | None], workers: int) -> float:
    """Time until all is done: the work over the workers, but never less than a chain takes."""
    return max([sum(costs) / workers, *chains(costs, after)])


def shape(spec: TrainSpec) -> tuple[TrainSpec, tuple[bool, ...]]:
    """The spec but for its seed and the numbers of its phases: runs in lockstep have one shape.

    And, for each phase after the first, whether its optimizer is that of the phase before. Only
    then does an optimizer's state outlive the change, and of runs in lockstep all have one or none.
    """
    optimizers = [phase.optimizer for phase in spec.schedule]
    keeps = tuple(before == after for before, after in pairwise(optimizers))
    schedule = []
    for phase in spec.schedule:
        chosen = phase.optimizer
        like = Optimizer(name="adam")  # and AdamW, whose step is Adam's
        if chosen.name == "sgd":
            like = Optimizer(momentum=0.0 if chosen.plain else 0.5)
        schedule.append(phase.model_copy(update={"learning_rate": 1.0, "optimizer": like}))
    return spec.model_copy(update={"schedule": tuple(schedule), "seed": 0}), keeps


def _likeness(stretch: Stretch, pieces: Sequence[Piece]) -> object:
    """Equal for stretches that may go in lockstep; so is what they wait for."""
    before = None if stretch.after is None else pieces[stretch.after]
    return (
        shape(stretch.spec),
        stretch.first,
        isinstance(before, Stretch) and shape(before.spec),
    )
