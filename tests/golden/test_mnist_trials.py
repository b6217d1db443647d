"""Gradient trials on MNIST: the known figures, and the loop that a reader would write."""

import copy
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from batchlab.engine import mlp
from batchlab.engine.data import load
from batchlab.engine.draws import trial_draw
from batchlab.engine.passes import Walker
from batchlab.engine.state import RunState
from batchlab.engine.train import initial_model, train
from batchlab.engine.trials import run_trials
from batchlab.spec import Cadence, Phase, TrialsSpec
from batchlab.studies.results import Trials
from batchlab.workloads import workload
from tests.golden.test_mnist_anchors import FOLDER, needs_mnist

PROTOCOL = workload("mnist").protocol
EARLY = PROTOCOL.spec([Phase.parse("1024:0.01:2")], 0, Cadence(every=1000))
RATE = PROTOCOL.learning_rate


@pytest.fixture(scope="module")
def early() -> RunState:
    return train(EARLY, load("mnist", Path(str(FOLDER)), "cpu", "float32"))


@needs_mnist
@pytest.mark.slow
def test_the_known_means_and_spreads(early: RunState) -> None:
    """Means to 5%; spreads to 40%, for 30 draws give them to 13%."""
    import pandas as pd

    spec = TrialsSpec(
        start=EARLY, batch_sizes=(1, 64, 1024), samples=1024, draws=30, learning_rate=RATE
    )
    state = run_trials(spec, early, load("mnist", Path(str(FOLDER)), "cpu", "float32"))
    rows = pd.DataFrame([r for r in state.records if r.convention == "sum-stepping"])
    found = Trials(rows, pd.DataFrame())
    assert found.means == pytest.approx([142, 252, 355], rel=0.05)
    assert found.deviations / found.means == pytest.approx([0.016, 0.040, 0.135], rel=0.4)


@needs_mnist
@pytest.mark.slow
def test_every_batch_size_beside_the_plain_loop(early: RunState) -> None:
    """In double to 1e-10, and single precision's norms to 1e-4 of the same float64 loop."""
    data = load("mnist", Path(str(FOLDER)), "cpu", "float64")
    model = initial_model(EARLY, data)
    model.load_state_dict({k: v.double() for k, v in early.group("model").items()})
    model = model.double()
    layers, single_layers = (mlp.linear_layers(m) for m in (model, copy.deepcopy(model).float()))
    assert layers is not None
    assert single_layers is not None
    rows = trial_draw(0, 0, 0, 1024, len(data.train_x))
    x, y = data.train_x[rows], data.train_y[rows]
    with torch.no_grad():
        walker = Walker(layers, x[None], y[None], deep=False)
        single_walker = Walker(single_layers, x[None].float(), y[None], deep=False)
    for size in PROTOCOL.trial_batch_sizes:
        with torch.no_grad():
            mine, single = (
                w.walk(size, RATE).sum(2, slice(None))[0] / -RATE for w in (walker, single_walker)
            )
        parameters = [p.detach().clone().requires_grad_() for p in model.parameters()]
        total = torch.zeros_like(parameters[4])
        for part in torch.arange(1024).split(size):
            h = F.linear(x[part], *parameters[:2]).relu()
            h = F.linear(h, *parameters[2:4]).relu()
            loss = F.cross_entropy(F.linear(h, *parameters[4:]), y[part])
            gradients = torch.autograd.grad(loss, parameters)
            total += gradients[4]
            with torch.no_grad():
                for p, g in zip(parameters, gradients, strict=True):
                    p.sub_(g, alpha=RATE)
        assert float((mine - total).norm() / total.norm()) < 1e-10, size
        assert float(single.double().norm() / total.norm()) == pytest.approx(1, abs=1e-4), size
