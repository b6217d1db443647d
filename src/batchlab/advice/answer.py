"""The answer as it is told: to Python, as JSON, and in the terminal."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from batchlab.advice.branches import Branches
from batchlab.advice.present import Present
from batchlab.advice.rates import Rule
from batchlab.advice.recommend import Recommendation
from batchlab.advice.tuning import Tuned
from batchlab.analysis.branches import Comparison
from batchlab.analysis.intervals import Interval
from batchlab.analysis.noise_scale import NoiseScale, Window
from batchlab.analysis.throughput import Throughput
from batchlab.documents import plain
from batchlab.engine.machine import Machine


class Cost(NamedTuple):
    """What a stage took; samples are those trained on."""

    stage: str
    seconds: float
    samples: int


@dataclass(frozen=True, slots=True)
class Tests:
    """The branches, what they say together, and at each place along the run."""

    branches: Branches
    comparison: Comparison
    places: tuple[Comparison | None, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Advice:
    """The answer with all that it rests on. `str` is the terminal's text."""

    name: str
    recommendation: Recommendation
    rule: Rule
    present: Present
    tuned: Tuned
    noise: Interval
    windows: tuple[Window, ...]
    layers: dict[str, NoiseScale]
    machine: Machine
    throughput: Throughput
    tests: Tests | None
    notes: tuple[str, ...]
    costs: tuple[Cost, ...]

    @property
    def tested(self) -> str:
        """agreed, disagreed, undecided or not tested."""
        return self.recommendation.tested

    @property
    def recommended(self) -> dict[str, Any] | None:
        """Smallest, best and largest size to take and the rates that go with them, or None.

        `or_more`: no larger size could be judged; it may be as good, or better.
        """
        choice = self.recommendation.choice
        if choice is None:
            return None
        told = {"low": choice.low, "best": choice.best, "high": choice.high}
        return {k: round(v) for k, v in told.items()} | {
            "or_more": self.recommendation.open,
            "learning_rate_rule": self.rule.json(choice.low, choice.best, choice.high)
            | {"best_of_those_tried": self.rates_tried},
        }

    @property
    def reason(self) -> str:
        """Why this answer, or why none."""
        told = self.recommendation
        return f"by the {told.source}, B_crit about {_size(told.critical)}: {told.reason}"

    def json(self) -> dict[str, Any]:
        """`recommended`, `evidence`, `tested`, `reason`; null for what is unbounded."""
        told: dict[str, Any] = plain(
            {
                "recommended": self.recommended,
                "evidence": self._evidence(),
                "tested": self.tested,
                "reason": self.reason,
            }
        )
        return told

    def _evidence(self) -> dict[str, Any]:
        answer = self.recommendation
        return {
            "workload": self.name,
            "present": self.present.json(),
            "tuned": {
                "learning_rate": self.tuned.run.learning_rate,
                "steps_to_target": self.tuned.run.steps,
                "steps_by_rate_over_present": self.tuned.tried,
            },
            "noise_scale": {
                "kind": self.tuned.run.kind,
                "over_the_run": self.noise,
                "windows": [
                    {
                        "first_step": self.tuned.run.measured[w.first],
                        "last_step": self.tuned.run.measured[w.last],
                        "noise_scale": w.estimate.scale,
                    }
                    for w in self.windows
                ],
                "layers": {name: told.scale for name, told in self.layers.items()},
            },
            "machine": {
                "device": self.machine.device,
                "threads": self.machine.threads,
                "stopped": self.machine.stopped,
                "memory_is": self.machine.memory_is,
                "sizes": [
                    {
                        "micro_batch": s.micro_batch,
                        "seconds": s.compute.median,
                        "memory_bytes": s.memory_bytes,
                    }
                    for s in self.machine.sizes
                ],
            },
            "prediction": {
                "from": answer.source,
                "critical_batch_size": answer.critical,
                "sizes": [row._asdict() for row in answer.prediction.rows],
                "fewest_samples": _choice(answer.prediction.samples),
            },
            "branches": self._branches(),
            "seconds_over_present": answer.seconds_over,
            "samples_over_present": answer.samples_over,
            "notes": list(self.notes),
            "cost": [cost._asdict() for cost in self.costs],
        }

    def _branches(self) -> dict[str, Any] | None:
        if self.tests is None:
            return None
        condition = self.recommendation.condition
        return {
            "critical_batch_size": self.tests.comparison.critical,
            "misfit": self.tests.comparison.misfit,
            "samples_over_present_size": {
                f"{size:g}": told for size, told in self.tests.comparison.ratios.items()
            },
            "places": [None if c is None else c.critical for c in self.tests.places],
            "test": None if condition is None else str(condition),
            **self.tests.branches.json(),
        }

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> list[str]:
        """The terminal's text: the headline, and `name: text` each, some with a line under them."""
        answer, choice = self.recommendation, self.recommendation.choice
        present = self.present.settings.batch_size
        lines = [self.headline]
        if choice is not None and answer.seconds_over and answer.samples_over:
            here = " (your size is among them)" if present in choice.sizes else ""
            lines.append(f"learning rate: {self.rule.words()}")
            rates = ", ".join(
                f"{self.rule.at(b).effect:.3g} at {b:g}"
                for b in dict.fromkeys((choice.low, choice.best, choice.high))
            )
            lines.append(f"  so {rates}{self._tried()}")
            lines.append(
                f"against your {present}{here} at its best rate: {_times(answer.seconds_over)} the "
                f"time and {_times(answer.samples_over)} the samples to {self.present.target}"
            )
        lines.append(f"because: {self.reason}")
        lines.append(
            f"  noise scale over the run {_size(self.noise)} ({self.tuned.run.kind}, "
            f"{self.windows[-1].last + 1} steps)"
        )
        lines.append(f"tested: {self.tested}{self._test()}")
        if self.tuned.multiplier != 1.0:
            both = (
                ""
                if answer.seconds_over is None
                else (
                    f"; with the size, {self.gain * answer.seconds_over.effect:.2g} times the time"
                )
            )
            lines.append(
                f"your rate: at {present} samples {self.tuned.run.learning_rate:.3g} takes "
                f"{self.gain:.2g} times the samples that yours, {self.present.learning_rate:.3g}, "
                f"does{both}"
            )
        lines += [f"note: {note}" for note in self.notes]
        seconds, samples = sum(c.seconds for c in self.costs), sum(c.samples for c in self.costs)
        each = ", ".join(f"{c.stage} {c.seconds:.1f} s" for c in self.costs)
        lines.append(f"cost: {seconds:.1f} s and {samples:,} samples ({each})")
        return lines

    @property
    def gain(self) -> float:
        """Samples to the target at the present size's best rate over those at the present one."""
        return self.tuned.run.steps.effect / self.present.steps.effect

    @property
    def headline(self) -> str:
        """The first line."""
        choice = self.recommendation.choice
        if choice is None:
            return f"{self.name}: can't tell which batch size is best"
        more = " or more" if self.recommendation.open else ""
        if choice.low == choice.high:
            return f"{self.name}: use a batch size of {choice.best:g}{more}"
        sizes = f"{choice.low:g} to {choice.high:g}{more}, best {choice.best:g}"
        return f"{self.name}: use a batch size of {sizes}"

    @property
    def rates_tried(self) -> dict[int, float]:
        """The best of the rates tried on branches, by size."""
        if self.tests is None:
            return {}
        best = self.tests.branches.best
        return {
            b.batch_size: b.rate
            for b in self.tests.branches.runs
            if b.multiplier == best[b.batch_size]
        }

    def _tried(self) -> str:
        told = ", ".join(f"{rate:.3g} at {size}" for size, rate in self.rates_tried.items())
        return f" (best of those tried on branches: {told})" if told else ""

    def _test(self) -> str:
        condition = self.recommendation.condition
        if self.tests is None or condition is None:
            return ", by the noise scale alone; --verify tests it"
        told = ", ".join(
            f"{_times(r)} at {size:g}" for size, r in self.tests.comparison.ratios.items()
        )
        return f"; samples to equal loss over those at {self.present.settings.batch_size}: {told}"


def _choice(choice: Any) -> dict[str, float] | None:
    if choice is None:
        return None
    return {"low": choice.low, "best": choice.best, "high": choice.high}


def _size(interval: Interval) -> str:
    return f"{interval.effect:.3g} [{interval.low:.3g}, {interval.high:.3g}]"


def _times(interval: Interval) -> str:
    return f"{interval.effect:.2f} [{interval.low:.2f}, {interval.high:.2f}] times"
