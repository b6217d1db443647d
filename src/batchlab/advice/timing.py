"""Seconds a step at whole batch sizes, from those of micro-batches."""

import pandas as pd

from batchlab.analysis.throughput import Throughput, measured
from batchlab.engine.machine import Machine, Size
from batchlab.spec import UserError

FASTEST, FEWEST = 6, 4  # a sixth of the rounds, but no fewer than four


def sizes(machine: Machine, samples: int) -> list[int]:
    """Batch sizes to tell of: those tried, half the data at the most.

    Where memory ended the list it goes on in doublings, by accumulation.
    """
    told = [s.micro_batch for s in machine.sizes if 2 * s.micro_batch <= samples]
    if memory_bound(machine):
        while told and 4 * told[-1] <= samples:
            told.append(2 * told[-1])
    return told


def memory_bound(machine: Machine) -> bool:
    """Whether it was memory, and not time or the data, that ended the list of sizes tried."""
    return "out of memory" in machine.stopped or "more than the cap" in machine.stopped


def micro_batch(machine: Machine, batch_size: int) -> int | None:
    """None where the whole batch fits; else the tried micro-batch of the fastest step."""
    largest = machine.sizes[-1].micro_batch
    if batch_size <= largest or not memory_bound(machine):
        return None
    return machine.fastest(batch_size)


def throughput(machine: Machine, told: list[int]) -> Throughput:
    """Of steps at the sizes told: loading, forward, backward and update, a row a round.

    Only the fastest sixth of each size's rounds: what else runs on the machine can only slow a
    step, so the fast end is the machine's own (Chen and Revels, Robust benchmarking in noisy
    environments, 2016). Raises `UserError` where no size was tried.
    """
    by_size = {s.micro_batch: s for s in machine.sizes}
    rows: list[tuple[int, float]] = []
    for batch in told:
        size = by_size.get(batch) or by_size[machine.fastest(batch)]
        seconds = sorted(_rounds(machine, size, batch))
        rows += [(batch, s) for s in seconds[: max(FEWEST, len(seconds) // FASTEST)]]
    if not rows:
        raise UserError("machine: no batch size was timed; half the data must hold one at least")
    return measured(pd.DataFrame(rows, columns=["batch_size", "seconds"]))


def _rounds(machine: Machine, size: Size, batch: int) -> list[float]:
    """Seconds of a step in each round; the parts, measured apart, each from fast to slow."""
    times = -(-batch // size.micro_batch)
    parts = (size.compute.each, size.loading.each, machine.update.each)
    each = zip(*(sorted(part) for part in parts), strict=True)
    return [times * (compute + loading) + update for compute, loading, update in each]
