import subprocess
import sys
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
import torch

from batchlab.spec import UserError
from batchlab.workloads import WORKLOADS, workload
from batchlab.workloads.base import Data, Workload


@pytest.fixture
def data() -> Data:
    x, y = torch.rand(3, 2), torch.tensor([0, 1, 1])
    return Data(train_x=x, train_y=y, test_x=x[:1], test_y=y[:1], classes=2)


def test_names_are_the_keys() -> None:
    assert {name: found.name for name, found in WORKLOADS.items()} == {
        "digits": "digits",
        "mnist": "mnist",
    }
    assert all(workload(name) is WORKLOADS[name] for name in WORKLOADS)


def test_an_unknown_name_is_told_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"^workload: unknown 'cifar'; .* digits, mnist$"):
        workload("cifar")


@pytest.mark.parametrize("name", list(WORKLOADS))
def test_protocols_hold_together(name: str) -> None:
    protocol = workload(name).protocol
    assert protocol.tiny < protocol.small < protocol.middle < protocol.large
    assert len(protocol.trial_batch_sizes) == 15
    assert max(protocol.trial_batch_sizes) == protocol.trial_samples <= protocol.train_samples
    assert protocol.early_epochs < protocol.epochs
    assert protocol.learning_rate < protocol.high_learning_rate
    assert protocol.model.initialisation == "glorot_uniform"


def test_a_workload_must_load() -> None:
    class Empty(Workload):
        protocol = workload("digits").protocol

    with pytest.raises(TypeError, match="abstract"):
        Empty()  # type: ignore[abstract]


def test_data_move_and_cast_inputs_alone(data: Data) -> None:
    moved = data.to(torch.device("cpu"), torch.float64)
    assert moved.train_x.dtype == moved.test_x.dtype == torch.float64
    assert moved.train_y.dtype == moved.test_y.dtype == torch.int64
    assert torch.equal(moved.train_x.float(), data.train_x)
    assert moved.classes == 2
    assert data.to(torch.device("meta"), torch.float32).test_y.device.type == "meta"


def test_data_do_not_change(data: Data) -> None:
    with pytest.raises(FrozenInstanceError):
        data.classes = 3  # type: ignore[misc]


def said(code: str, folder: Path) -> str:
    """What a process of its own prints."""
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=folder
    )
    return told.stdout.strip()


def test_importing_is_light(tmp_path: Path) -> None:
    code = "import sys, batchlab.workloads; print(sorted({'sklearn', 'pooch'} & set(sys.modules)))"
    assert said(code, tmp_path) == "[]"


def test_a_perceptron_needs_no_compiler(tmp_path: Path) -> None:
    """On PyTorch's "meta" device it does: SymPy and more, half a second of every process."""
    code = (
        "import sys, torch; from batchlab.spec import Model; from batchlab.workloads import mlp; "
        "before = set(sys.modules); mlp.build(Model(hidden=(3,)), 2, 2, torch.Generator()); "
        "print('sympy' in set(sys.modules) - before)"
    )
    assert said(code, tmp_path) == "False"
