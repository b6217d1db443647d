"""Training until a target on the validation data is reached: the steps, samples and seconds to it.

The validation data are looked at after 1, 2, 3, ... steps, eight times in every doubling of the
steps (`looks`). A target is first passed by chance the earlier the more often one looks; so the
looks are as dense, relative to the steps, at every batch size. Steps to the target are
interpolated linearly between the last look and the one that finds it, at most a twelfth later.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil, isfinite
from typing import Literal, NamedTuple

from batchlab.engine.general import GeneralRun
from batchlab.engine.settings import Settings
from batchlab.spec import UserError
from batchlab.workloads.prepared import Prepared

LOOKS = 8  # in every doubling of the steps

Better = Literal["higher", "lower"]
Outcome = Literal["reached", "unreached", "diverged"]
Report = Callable[[int], None]  # called with 0 at every look; may raise to end the run


class Look(NamedTuple):
    """The metric (or the loss) on the validation data after so many steps."""

    step: int
    samples: int
    value: float


@dataclass(frozen=True, slots=True)
class TargetRun:
    """Where a run to a target ended.

    `steps` and `samples` to the target where it was reached, interpolated; else those taken.
    `seconds` of training to there, looks left out, which took `looking_s`.
    """

    outcome: Outcome
    steps: float
    samples: float
    seconds: float
    looking_s: float
    looks: tuple[Look, ...]

    def best(self, better: Better) -> float | None:
        """The best value seen after the first step; None where there is none."""
        values = [look.value for look in self.looks if look.step]
        if not values:
            return None
        return max(values) if better == "higher" else min(values)


def judged_by(workload: Prepared) -> tuple[str, Better]:
    """The name of what the target is a value of, and which way is better: the metric, or the
    loss."""
    metric = workload.objective.metric
    return ("loss", "lower") if metric is None else (metric.name, metric.better)


def reaches(value: float, target: float, better: Better) -> bool:
    """Whether the value is the target or better."""
    return value >= target if better == "higher" else value <= target


def looks(steps: int) -> Iterator[int]:
    """After which steps the validation data are looked at, up to and with `steps`."""
    last, k = 0, 0
    while (step := ceil(2 ** (k / LOOKS))) < steps:
        if step > last:
            yield step
        last, k = step, k + 1
    yield steps


def run_to_target(
    workload: Prepared,
    settings: Settings,
    target: float | None,
    *,
    steps: int,
    seed: int,
    report: Report | None = None,
) -> TargetRun:
    """Train a fresh initialisation for at most `steps` until the validation data reach `target`.

    The seed fixes initialisation, data order and draws: the same call gives the same numbers, but
    for the seconds. None as the target: all `steps` are taken. Diverged is a run whose loss is not
    finite, in training or on the validation data. Raises `UserError` where the target is met
    before any step.
    """
    better = judged_by(workload)[1]
    run = GeneralRun(workload, settings, seed=seed, fresh=True)
    seen: list[Look] = []
    trained_s, looking_s = 0.0, 0.0
    for step in (0, *looks(steps)):
        if report is not None:
            report(0)
        began = time.perf_counter()
        run.advance(step - run.place.step)  # waits for the device at its end
        ended = time.perf_counter()
        before_s, trained_s = trained_s, trained_s + (ended - began if step else 0.0)
        if run.status == "diverged":
            return _end("diverged", run, trained_s, looking_s, seen)
        found = run.evaluate()
        looking_s += time.perf_counter() - ended
        value = found.loss if found.metric is None else found.metric
        if not (isfinite(found.loss) and isfinite(value)):
            return _end("diverged", run, trained_s, looking_s, seen)
        seen.append(Look(step, run.place.samples, value))
        if target is not None and reaches(value, target, better):
            if not step:
                raise UserError(f"target {target:g}: met before any step ({value:.4g})")
            last = seen[-2]
            part = (target - last.value) / (value - last.value)
            return TargetRun(
                "reached",
                last.step + part * (step - last.step),
                last.samples + part * (run.place.samples - last.samples),
                before_s + part * (trained_s - before_s),
                looking_s,
                tuple(seen),
            )
    return _end("unreached", run, trained_s, looking_s, seen)


def _end(
    outcome: Outcome, run: GeneralRun, seconds: float, looking_s: float, seen: list[Look]
) -> TargetRun:
    return TargetRun(outcome, run.place.step, run.place.samples, seconds, looking_s, tuple(seen))
