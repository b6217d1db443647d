"""The article's own numbers on MNIST, to the margins its rounding leaves."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector

from batchlab import laboratory as lab
from batchlab.backends.processes import Processes
from batchlab.engine.data import load
from batchlab.engine.draws import epoch_order
from batchlab.engine.step import stepper
from batchlab.engine.train import initial_model
from batchlab.jobs import Site
from batchlab.runner import run_all
from batchlab.spec import Cadence, Optimizer, Phase
from batchlab.store.database import Store
from batchlab.workloads import workload
from tests.test_runner import Silent

FOLDER = os.environ.get("BATCHLAB_DATA_DIR")
needs_mnist = pytest.mark.skipif(
    not FOLDER or not (Path(FOLDER) / "mnist").is_dir(),
    reason="no MNIST: set BATCHLAB_DATA_DIR to a folder with mnist/ in it",
)
ADAM = Optimizer(name="adam")
PHASES = [Phase.parse(text) for text in ("64:0.01:30", "1024:0.01:30")]
Described = dict[str, Any]


def trained(root: Path, phases: list[Phase]) -> dict[Phase, Described]:
    """Every phase as a run of seed 0, a process and thread for each core."""
    protocol = workload("mnist").protocol
    specs = [protocol.spec([p], 0, Cadence(every=p.epochs or 1)) for p in phases]
    with Store(root) as store:
        backend = Processes(len(os.sched_getaffinity(0)), 1)
        run_all(specs, store, backend, Site(root, None, "cpu"), progress=Silent())
        told = {row["key"]: row for row in lab.describe(store)}
    return {phase: told[spec.key] for phase, spec in zip(phases, specs, strict=True)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[Phase, Described]:
    return trained(tmp_path_factory.mktemp("store"), PHASES)


def cosines(run: Described) -> list[float]:
    return list(run["cos"].values())


@needs_mnist
@pytest.mark.slow
def test_small_batch(runs: dict[Phase, Described]) -> None:
    run = runs[PHASES[0]]
    assert run["W"] == pytest.approx(6.71, abs=0.05)
    assert run["b"] == pytest.approx(0.11, abs=0.01)
    assert run["oW"] == pytest.approx(44.9, abs=0.1)
    assert run["test_accuracy"] == pytest.approx(0.98, abs=0.004)
    assert run["train_accuracy"] > 0.998
    assert cosines(run) == pytest.approx([0.988, 0.993, 0.928], abs=0.002)


@needs_mnist
@pytest.mark.slow
def test_large_batch(runs: dict[Phase, Described]) -> None:
    run = runs[PHASES[1]]
    assert run["oW"] == pytest.approx(44.1, abs=0.1)
    assert run["b"] == pytest.approx(0.07, abs=0.005)
    assert run["test_accuracy"] == pytest.approx(0.95, abs=0.01)


@needs_mnist
@pytest.mark.hours
def test_large_batch_at_a_high_rate(tmp_path: Path) -> None:
    """Minutes, but CI has none to spare."""
    phase = Phase.parse("1024:0.1:30")
    run = trained(tmp_path, [phase])[phase]
    assert run["oW"] == pytest.approx(44.7, abs=0.1)
    assert run["b"] == pytest.approx(0.10, abs=0.01)
    assert run["test_accuracy"] == pytest.approx(0.98, abs=0.004)


@needs_mnist
@pytest.mark.hours
def test_adam(tmp_path: Path) -> None:
    """Minutes, and the margins are the widest: CI has the first steps instead.

    The article's run and this one are two draws: rounding alone sends Adam another way.

    Over seeds 0 to 7 b is 18.5 with a standard deviation of 1.24, and seed 0 has ended at 17.07,
    20.49 and 20.54 on three CPUs (docs/log.md): two runs are 1.24 sqrt(2) apart, three times that
    is the margin.
    """
    phase = Phase.parse("64:0.01:30", ADAM)
    run = trained(tmp_path, [phase])[phase]
    assert run["b"] == pytest.approx(18.3, abs=3 * 2**0.5 * 1.24)
    assert cosines(run) == pytest.approx([0.124, 0.359, 0.153], abs=0.05)


@needs_mnist
@pytest.mark.slow
def test_adams_first_steps() -> None:
    """In double, those of the loop that a reader would write, and not with another epsilon."""
    data = load("mnist", Path(str(FOLDER)), "cpu", "float64")
    phase, steps = Phase.parse("64:0.01:1", ADAM), 30
    spec = workload("mnist").protocol.spec([phase], 0, Cadence())
    spec = spec.model_copy(update={"dtype": "float64"})
    start, mine, plain, wrong = (initial_model(spec, data) for _ in range(4))
    rows = epoch_order(0, 0, len(data.train_x))[: steps * phase.batch_size]
    stepper(mine, phase).steps(data.train_x[rows], data.train_y[rows], phase.batch_size)
    for model, eps in ((plain, 1e-8), (wrong, 1e-7)):
        optimizer = torch.optim.Adam(model.parameters(), lr=phase.learning_rate, eps=eps)
        for part in rows.split(phase.batch_size):
            optimizer.zero_grad()
            F.cross_entropy(model(data.train_x[part]), data.train_y[part]).backward()
            optimizer.step()
    vectors = [parameters_to_vector(m.parameters()) for m in (start, mine, plain, wrong)]
    zero, one, other, off = (v.detach() for v in vectors)
    assert (one - other).norm() < 1e-9 * (other - zero).norm()
    assert (one - off).norm() > 1e-6 * (other - zero).norm()


@needs_mnist
@pytest.mark.hours
def test_as_many_steps_at_the_large_batch(tmp_path: Path) -> None:
    phase = Phase.parse("1024:0.01:480")
    run = trained(tmp_path, [phase])[phase]
    assert run["W"] == pytest.approx(6.63, abs=0.1)
    assert run["test_accuracy"] == pytest.approx(0.98, abs=0.004)
