"""Steps a second of every contender at every batch size, beside the hardware's limit.

The contenders take turns: a round goes once over the batch sizes, and at each it measures the
hardware and then every contender for a fraction of a second. A ratio is one of two measurements of
the same round, so what slows the machine for longer than a second cancels; a row tells the median
of the rounds' ratios and their smallest and largest.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count, cycle, islice
from statistics import median
from typing import Any, NamedTuple, Protocol

from batchlab.engine import timing
from batchlab.engine.data import train_samples
from batchlab.spec import UserError, parse_sizes
from batchlab.speed import hardware
from batchlab.speed.contenders import Batchlab, Case, Contender, Eager, Naive, Shuffled
from batchlab.speed.limit import Rates, parameters, steps_a_second

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096)
STRETCH_S = 0.2  # of a contender in a round
LEAST = 2  # steps of it

LEGEND = """\
naive, eager, batchlab, limit: steps a second, medians over the rounds; the three ratios are those
of batchlab's steps a second, median (smallest to largest) over the rounds
naive: DataLoader, autograd, torch.optim.SGD, loss.item(); eager: the same on slices of shuffled
tensors, without item()
limit: the dense step's matrix products at the measured rate, or its parameters read twice and
written once at the measured bandwidth, whichever takes longer; a step that skips silent units or
leaves a layer to inner products does less than that, so of_limit may pass 1
load before: of other programs; where it leaves fewer cores free than there are threads, threads
wait for one another at every operation, and the ratios say little of the programs"""


class Spread(NamedTuple):
    """A ratio over the rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, over: Iterable[float], under: Iterable[float]) -> "Spread":
        """Of two measurements made in the same rounds."""
        ratios = [a / b for a, b in zip(over, under, strict=True)]
        return cls(median(ratios), min(ratios), max(ratios))

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.low:.3g} to {self.high:.3g})"


@dataclass(slots=True)
class Row:
    """One batch size: steps a second in every round."""

    batch_size: int
    naive: list[float] = field(default_factory=list)
    eager: list[float] = field(default_factory=list)
    batchlab: list[float] = field(default_factory=list)
    limit: list[float] = field(default_factory=list)

    def speeds(self) -> dict[str, float]:
        """Medians, steps a second."""
        return {
            "naive": median(self.naive),
            "eager": median(self.eager),
            "batchlab": median(self.batchlab),
            "limit": median(self.limit),
        }

    def ratios(self) -> dict[str, Spread]:
        """Batchlab's steps a second over the others'."""
        return {
            "over_naive": Spread.of(self.batchlab, self.naive),
            "over_eager": Spread.of(self.batchlab, self.eager),
            "of_limit": Spread.of(self.batchlab, self.limit),
        }

    def json(self) -> dict[str, Any]:
        """For `--json`."""
        ratios = {name: ratio._asdict() for name, ratio in self.ratios().items()}
        return {"batch_size": self.batch_size} | self.speeds() | ratios

    def cells(self) -> dict[str, str]:
        """For a table."""
        speeds = {name: f"{value:.4g}" for name, value in self.speeds().items()}
        ratios = {name: str(ratio) for name, ratio in self.ratios().items()}
        return {"batch_size": str(self.batch_size)} | speeds | ratios


@dataclass(slots=True)
class Comparison:
    """All batch sizes of a case, and what the hardware did meanwhile."""

    workload: str
    machine: dict[str, str | int]
    load: float | None  # before the comparison, which is a load itself
    rows: list[Row]
    rates: list[Rates] = field(default_factory=list)
    compile_seconds: float = 0.0  # the stepper's first step at every batch size, together

    @property
    def gigaflops(self) -> float:
        """Rate of the matrix product, GFLOP/s, the median of all times it was measured."""
        return median(rates.flops for rates in self.rates) / 1e9

    @property
    def gigabytes(self) -> float:
        """Bandwidth, GB/s, the same."""
        return median(rates.bandwidth for rates in self.rates) / 1e9

    def json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "machine": self.machine,
            "matrix_product_gflops": self.gigaflops,
            "bandwidth_gbs": self.gigabytes,
            "load_before": self.load,
            "compile_seconds": self.compile_seconds,
            "workload": self.workload,
            "rounds": len(self.rates) // len(self.rows),
            "rows": [row.json() for row in self.rows],
        }

    def head(self) -> str:
        """One line that says of what and where."""
        cpu, cores, threads, torch, device = self.machine.values()
        load = "unknown" if self.load is None else f"{self.load:.1f}"
        return (
            f"{self.workload} on {cpu}, {cores} cores, {threads} threads, torch {torch}, {device}: "
            f"{self.gigaflops:.0f} GFLOP/s, {self.gigabytes:.0f} GB/s; first use (compile) "
            f"{self.compile_seconds:.1f} s; load before {load}"
        )


def choose_sizes(name: str, text: str | None) -> tuple[int, ...]:
    """The batch sizes asked for, or those by default that the workload has samples for.

    Raises `UserError` where one asked for is not from 1 to that many, or comes twice.
    """
    samples = train_samples(name)
    if text is None:
        return tuple(size for size in SIZES if size <= samples)
    sizes = parse_sizes(text)
    for size in sizes:
        if not 1 <= size <= samples:
            raise UserError(
                f"--batch-sizes {size}: must be from 1 to {samples}, the training samples of {name}"
            )
        if sizes.count(size) > 1:
            raise UserError(f"--batch-sizes {size}: comes twice; batch sizes must be distinct")
    return sizes


class Progress(Protocol):
    """Hears how far the work has come."""

    def plan(self, weights: Sequence[float]) -> None:
        """So many measurements are about to be made, each with its share of the time."""

    def finish(self, job: int) -> None:
        """A measurement has ended."""


def compare(
    case: Case,
    sizes: Sequence[int],
    rounds: int,
    *,
    progress: Progress,
    steps: int | None = None,
) -> Comparison:
    """Let the contenders take turns at every batch size, after a round to warm up.

    A turn takes `STRETCH_S`, or so many `steps` where that is given.
    """
    machine, rows = hardware.describe(case.device), [Row(size) for size in sizes]
    comparison = Comparison(case.name, machine, hardware.load(), rows)
    progress.plan([1.0] * (len(sizes) * (rounds + 1)))
    done = count()
    shuffled = Shuffled(case.data)
    lanes: list[list[_Turn]] = []
    for row in comparison.rows:
        phase = case.phase(row.batch_size)
        ours = Batchlab(case, phase, shuffled)
        comparison.compile_seconds += seconds(ours, 1, case)
        contenders: list[tuple[Contender, list[float]]] = [
            (Naive(case, phase), row.naive),
            (Eager(case, phase, shuffled), row.eager),
            (ours, row.batchlab),
        ]
        lanes.append([_Turn(one, paced(one, case, steps), kept) for one, kept in contenders])
        progress.finish(next(done))
    for forwards in islice(cycle([True, False]), rounds):
        for row, lane in zip(comparison.rows, lanes, strict=True):
            rates = hardware.measure(parameters(case.widths), case.device)
            comparison.rates.append(rates)
            row.limit.append(steps_a_second(case.widths, row.batch_size, rates))
            for turn in lane if forwards else reversed(lane):
                turn.kept.append(turn.steps / seconds(turn.contender, turn.steps, case))
            progress.finish(next(done))
    return comparison


class _Turn(NamedTuple):
    """What a contender does every round, and where its steps a second are kept."""

    contender: Contender
    steps: int
    kept: list[float]


def seconds(one: Contender, steps: int, case: Case) -> float:
    """Time of so many steps from the initial point."""
    one.start()
    return timing.seconds(lambda: one.take(steps), case.device)


def paced(one: Contender, case: Case, fixed: int | None = None) -> int:
    """Steps that fill a turn, found while warming up; or those that are fixed."""
    steps, spent = 1, seconds(one, 1, case)
    while fixed is None and spent < STRETCH_S / 4:
        steps *= 2
        spent = seconds(one, steps, case)
    return fixed or max(LEAST, round(steps * STRETCH_S / spent))
