"""The best learning rate at the present batch size, by runs to the target.

Predictions hold for tuned rates, and noise scales are those of the rate they are measured at
(McCandlish et al., 2018, section 3): a run at a rate far from the best tells little.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from batchlab.advice.present import Present, Say, run_present
from batchlab.spec import UserError
from batchlab.workloads.prepared import Prepared

STEP = 2.0  # of the grid of rates
MOST = 7  # steps of it


@dataclass(frozen=True, slots=True)
class Tuned:
    """The best run, its rate over the present one, and what all runs but the present one cost."""

    run: Present
    multiplier: float
    samples: int
    tried: dict[float, float | None]  # steps to the target by multiplier; None: not fewer


def tune(
    workload: Prepared,
    present: Present,
    *,
    seed: int,
    keep: Callable[[object], object] = lambda _: None,
    say: Say = lambda _: None,
) -> Tuned:
    """Twice the rate again and again while that gets to the target in fewer steps, or else half.

    Each run gets as many steps as the best so far took; `seed` is the present run's, so that all
    start alike and see the same samples.
    """
    best, multiplier, samples = present, 1.0, 0
    tried: dict[float, float | None] = {1.0: present.steps.effect}
    for factor in (STEP, 1 / STEP):
        for k in range(1, MOST + 1):
            rate = present.learning_rate * factor**k
            steps = max(2, round(best.steps.high))
            try:
                run = run_present(
                    workload,
                    replace(present.settings, learning_rate=rate),
                    steps,
                    seed=seed,
                    target=present.target,
                    branched=True,
                )
            except UserError:  # it diverged, or did not get there
                samples += steps * present.settings.batch_size  # at the most
                tried[factor**k] = None
                break
            samples += run.passed
            tried[factor**k] = run.steps.effect
            keep({"steps_to_target_by_rate_over_present": tried})
            say(f"rate {rate:.3g}: {run.steps.effect:.0f} steps to the target, of {steps}")
            if run.steps.effect >= best.steps.effect:
                break
            best, multiplier = run, factor**k
        if multiplier != 1.0:
            break
    return Tuned(best, multiplier, samples, tried)
