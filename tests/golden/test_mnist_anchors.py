"""The article's own numbers on MNIST, to the margins its rounding leaves."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from batchlab import laboratory as lab
from batchlab.backends import BACKENDS
from batchlab.runner import Site
from batchlab.spec import Cadence, Optimizer, Phase
from batchlab.store.database import Store
from batchlab.workloads import workload
from tests.test_runner import Silent

FOLDER = os.environ.get("BATCHLAB_DATA_DIR")
needs_mnist = pytest.mark.skipif(
    not FOLDER or not (Path(FOLDER) / "mnist").is_dir(),
    reason="no MNIST: set BATCHLAB_DATA_DIR to a folder with mnist/ in it",
)
Train = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Train]:
    with Store(tmp_path_factory.mktemp("store")) as store:

        def one(text: str, optimizer: Optimizer | None = None, every: int = 30) -> dict[str, Any]:
            phase = Phase.parse(text, optimizer)
            spec = workload("mnist").protocol.spec([phase], 0, Cadence(every=every))
            cores = len(os.sched_getaffinity(0))
            site = Site(store.root, None, "cpu")
            return lab.train_one(spec, store, BACKENDS["serial"](1, cores), site, Silent())

        yield one


def cosines(run: dict[str, Any]) -> list[float]:
    return list(run["cos"].values())


@needs_mnist
@pytest.mark.slow
def test_small_batch(train: Train) -> None:
    run = train("64:0.01:30")
    assert run["W"] == pytest.approx(6.71, abs=0.05)
    assert run["b"] == pytest.approx(0.11, abs=0.01)
    assert run["oW"] == pytest.approx(44.9, abs=0.1)
    assert run["test_accuracy"] == pytest.approx(0.98, abs=0.004)
    assert run["train_accuracy"] > 0.998
    assert cosines(run) == pytest.approx([0.988, 0.993, 0.928], abs=0.002)


@needs_mnist
@pytest.mark.slow
def test_large_batch(train: Train) -> None:
    run = train("1024:0.01:30")
    assert run["oW"] == pytest.approx(44.1, abs=0.1)
    assert run["b"] == pytest.approx(0.07, abs=0.005)
    assert run["test_accuracy"] == pytest.approx(0.95, abs=0.01)


@needs_mnist
@pytest.mark.slow
def test_large_batch_at_a_high_rate(train: Train) -> None:
    run = train("1024:0.1:30")
    assert run["oW"] == pytest.approx(44.7, abs=0.1)
    assert run["b"] == pytest.approx(0.10, abs=0.01)
    assert run["test_accuracy"] == pytest.approx(0.98, abs=0.004)


@needs_mnist
@pytest.mark.slow
def test_adam(train: Train) -> None:
    run = train("64:0.01:30", Optimizer(name="adam"))
    assert run["b"] == pytest.approx(18.3, abs=2)
    assert cosines(run) == pytest.approx([0.124, 0.359, 0.153], abs=0.05)


@needs_mnist
@pytest.mark.hours
def test_as_many_steps_at_the_large_batch(train: Train) -> None:
    run = train("1024:0.01:480", every=480)
    assert run["W"] == pytest.approx(6.63, abs=0.1)
    assert run["test_accuracy"] == pytest.approx(0.98, abs=0.004)
