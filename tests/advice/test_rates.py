"""The learning-rate rule of a workload's optimizer, in numbers and words."""

from collections.abc import Callable
from math import inf
from typing import Any

import pytest
import torch

from batchlab.advice.rates import Rule
from batchlab.analysis.intervals import Interval
from tests import own

NOISE = Interval(64.0, 32.0, 128.0, 6)


def rule(kind: Callable[..., torch.optim.Optimizer], **options: Any) -> Rule:
    job = own.prepared(optimizer=lambda m: kind(m.parameters(), lr=0.1, **options))
    return Rule.of(job, NOISE)


def test_sgd_is_linear_below_the_noise_scale_and_level_above() -> None:
    told = rule(torch.optim.SGD, momentum=0.9)
    assert told.name == "linear"
    assert told.at(8).effect == pytest.approx(0.1)
    assert told.at(1).effect == pytest.approx(0.1 * 9 / 65)
    assert told.at(1e9).effect == pytest.approx(0.9)
    assert told.at(64).low < told.at(64).effect < told.at(64).high
    assert told.options(64) == {}


def test_an_unbounded_noise_scale_is_linear_all_the_way() -> None:
    told = rule(torch.optim.SGD).tuned(2.0, Interval(inf, 100.0, inf, 3))
    assert told.at(80).effect == pytest.approx(2.0)


def test_adam_goes_by_the_square_root_and_keeps_its_half_life() -> None:
    told = rule(torch.optim.AdamW, betas=(0.9, 0.98))
    assert told.at(32).effect == pytest.approx(0.2)
    settings = told.settings(32, 0.5, None)
    assert settings.learning_rate == pytest.approx(0.1)
    assert settings.options == {"beta2": pytest.approx(0.98**4)}
    assert "beta2 = 0.98^(B/8)" in told.words()
    assert set(told.json(8, 16, 32)["rates"]) == {"8", "16", "32"}


def test_rmsprop_has_no_beta2() -> None:
    told = rule(torch.optim.RMSprop)
    assert told.name == "square root"
    assert told.options(32) == {}
    assert "beta2" not in told.words()
