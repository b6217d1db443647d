"""Whose error it is: the user's comes as one line, ours as it is."""

import pytest
import torch
from torch import nn

from batchlab.engine.general import GeneralRun
from batchlab.engine.settings import Settings
from batchlab.spec import UserError
from batchlab.workloads import failures
from batchlab.workloads.failures import training
from batchlab.workloads.objective import Objective
from tests import own


def fails(_: torch.Tensor, __: torch.Tensor) -> torch.Tensor:
    raise ValueError("no such loss")


def test_the_users_own_line_is_named() -> None:
    with (
        pytest.raises(UserError, match=r"^training: failed with ValueError: no such loss \(.*py"),
        training("training", "give less"),
    ):
        Objective(fails)(own.mlp(), own.tensors())


def test_what_pytorch_raises_within_the_users_model_is_the_users() -> None:
    model = nn.Sequential(nn.Linear(own.INPUTS, 4), nn.BatchNorm1d(4), nn.Linear(4, own.CLASSES))
    run = GeneralRun(own.prepared(model=model), Settings(1))
    with pytest.raises(ValueError, match="Expected more than 1 value") as caught:
        run.advance(1)
    here = caught.value.__traceback__
    assert here is not None  # that of this test, which is no part of what is asked
    assert failures._theirs(caught.value.with_traceback(here.tb_next))


def test_memory_that_does_not_suffice() -> None:
    with (
        pytest.raises(UserError, match=r"^batch size 8: out of memory .*; must fit: give less$"),
        training("batch size 8", "give less"),
    ):
        raise torch.OutOfMemoryError("tried to allocate 8 GiB")
