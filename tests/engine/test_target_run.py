"""Runs to a target against gradient descent in closed form; outcomes; where it is looked."""

from itertools import pairwise
from math import log

import pytest
import torch
from torch import nn

from batchlab.engine.settings import Settings
from batchlab.engine.target_run import Look, TargetRun, looks, reaches, run_to_target
from batchlab.spec import UserError
from batchlab.workloads.objective import Metric
from batchlab.workloads.prepare import prepare
from batchlab.workloads.prepared import Prepared
from batchlab.workloads.user import UserWorkload


class Parabola(nn.Module):
    """w^2 / 2 from w = 1: after t steps of rate a it is (1 - a)^(2t) / 2."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.w + 0 * x


def half_square(output: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    return (output**2).mean() / 2


def factory(metric: Metric | None = None) -> UserWorkload:
    model = Parabola()
    zeros = (torch.zeros(12), torch.zeros(12))
    return UserWorkload(
        model=model,
        train=zeros,
        validation=zeros,
        loss=half_square,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        batch_size=4,
        metric=metric,
    )


def parabola(metric: Metric | None = None) -> Prepared:
    return prepare(factory(metric), factory=lambda: factory(metric))


def to(target: float | None, rate: float = 0.01, steps: int = 1000, size: int = 4) -> TargetRun:
    return run_to_target(parabola(), Settings(size, rate), target, steps=steps, seed=0)


@pytest.mark.parametrize("rate", [0.3, 0.05, 0.01])
def test_steps_follow_the_closed_form(rate: float) -> None:
    exact = log(0.01 / 0.5) / (2 * log(1 - rate))
    run = to(0.01, rate)
    assert run.outcome == "reached"
    # A line between two looks lies above a curve that falls ever slower.
    assert exact <= run.steps <= exact * 1.02 + 0.2
    assert run.samples == pytest.approx(4 * run.steps)
    assert not exact <= to(0.01, 1.1 * rate).steps  # the same test, of another rate
    assert run.best("lower") == run.looks[-1].value <= 0.01 < run.looks[-2].value


def test_samples_of_a_last_short_batch() -> None:
    run = to(None, steps=5, size=5)  # 5, 5, 2, 5, 5
    assert (run.outcome, run.steps, run.samples) == ("unreached", 5, 22)


def test_outcomes() -> None:
    run = to(0.01, steps=20)
    assert (run.outcome, run.steps) == ("unreached", 20)
    assert run.looks[-1].step == 20
    run = to(0.01, rate=1e30)
    assert run.outcome == "diverged"
    assert run.steps <= 3
    assert run.best("lower") is None or len(run.looks) > 1
    with pytest.raises(UserError, match=r"target 0.6: met before any step \(0.5\)"):
        to(0.6)


def test_the_metric_decides_where_there_is_one() -> None:
    metric = Metric(lambda output, _: 1 - output.mean(), better="higher")
    run = run_to_target(parabola(metric), Settings(4, 0.1), 0.5, steps=100, seed=0)
    exact = log(0.5) / log(0.9)
    assert exact - 0.1 <= run.steps <= exact + 0.1
    assert run.best("higher") == run.looks[-1].value
    assert reaches(0.5, 0.5, "higher")
    assert not reaches(0.6, 0.5, "lower")


def test_the_seed_fixes_everything_but_the_time() -> None:
    one, other = (to(0.01) for _ in range(2))
    assert (one.steps, one.samples, one.looks) == (other.steps, other.samples, other.looks)
    assert one.seconds > 0
    assert one.looking_s > 0


def test_a_report_ends_the_run() -> None:
    def report(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_to_target(parabola(), Settings(4), 0.01, steps=9, seed=0, report=report)


@pytest.mark.parametrize("steps", [1, 7, 100, 12345])
def test_looks_are_as_dense_everywhere(steps: int) -> None:
    at = list(looks(steps))
    assert at[0] == 1
    assert at[-1] == steps
    assert all(a < b for a, b in pairwise(at))
    assert all(b <= 2 ** (1 / 8) * a + 1 for a, b in pairwise(at))
    assert sum(1000 < step <= 2000 for step in looks(10**4)) == 8


def test_a_look_is_a_place_and_a_value() -> None:
    assert to(None, steps=1, rate=0.5).looks == (Look(0, 0, 0.5), Look(1, 4, 0.125))
