"""From the end of a run to the start of a longer one, and from its records to the other's."""

from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import replace

from batchlab.engine.state import RunState
from batchlab.record import Record
from batchlab.spec import TrainSpec

WEIGHT_READINGS = ("distance", "norm", "cosine")  # what is measured of the weights alone


def branch(end: RunState, longer: TrainSpec, samples: int) -> RunState:
    """The state from which `longer` goes on as if it had come all the way itself.

    `end` is the end of a run that `longer` begins like, and must end with a full epoch or with one
    of its phases. A run that diverged has no further way, and neither has one that is as long.
    """
    if end.status != "finished":
        return end
    lengths = [phase.step_count(samples) for phase in longer.schedule]
    index, left = 0, end.position.step
    while index < len(lengths) and left >= lengths[index]:
        left -= lengths[index]
        index += 1
    if index == len(lengths):
        if left:
            raise ValueError(f"ends {left} steps after the run that is to go on from it")
        return end
    here = replace(end.position, phase=index, phase_step=left)
    before, after = (longer.schedule[i].optimizer for i in (max(0, index - 1), index))
    changed = not left and before != after
    # The loop's own rule: an optimizer's state outlives a change of rate or batch size.
    tensors = {k: v for k, v in end.tensors.items() if not changed or k.startswith("model/")}
    return RunState(tensors, here, list(end.records), "running", end.seconds)


def measured(records: Iterable[Record]) -> tuple[frozenset[int], frozenset[int]]:
    """The steps at which everything was measured, and those at which the weights were."""
    full: set[int] = set()
    weights: set[int] = set()
    for record in records:
        (weights if record.name in WEIGHT_READINGS else full).add(record.step)
    return frozenset(full), frozenset(weights - full)


def select(
    records: Iterable[Record], full: AbstractSet[int], weights: AbstractSet[int]
) -> list[Record]:
    """All records at the steps `full`, and those of the weights alone at the steps `weights`."""
    return [
        r for r in records if r.step in full or (r.step in weights and r.name in WEIGHT_READINGS)
    ]
