"""Steps with one kernel between two products are the steps by PyTorch's operations."""

import pytest
import torch

from batchlab.engine.draws import generator
from batchlab.engine.mlp import linear_layers
from batchlab.engine.pointwise import PointwiseOptimizer, PointwiseSGD
from batchlab.engine.step import Autograd, Stepper
from batchlab.spec import Model, Optimizer, Phase
from batchlab.workloads.mlp import build
from tests import toy
from tests.engine.interpreted import INTERPRETED, passes


def steps_beside_autograd(device: str) -> None:
    """On a CPU this wants Triton's interpreter."""
    data = toy.data(torch.float32)
    x, y = data.train_x.to(device), data.train_y.to(device)
    adam = Optimizer(name="adam")
    for chosen, size in ((None, 1), (None, 7), (None, len(x)), (adam, 7)):
        phase = Phase(batch_size=size, epochs=1, learning_rate=0.05)
        if chosen:
            phase = phase.model_copy(update={"optimizer": chosen})
        models = [
            build(Model(hidden=(20, 17)), toy.INPUTS, toy.CLASSES, generator(0, "init")).to(device)
            for _ in range(3)
        ]
        layers = linear_layers(models[0])
        assert layers is not None
        mine: Stepper = (
            PointwiseOptimizer(models[0], layers, phase)
            if chosen
            else PointwiseSGD(layers, phase.learning_rate)
        )
        theirs = Autograd(models[1], phase)
        for one in (mine, theirs):
            one.steps(x, y, size)
        states = [model.state_dict().values() for model in models]
        for a, b, begin in zip(*states, strict=True):
            assert float((a - b).norm()) < 1e-4 * float((b - begin).norm())
        assert len(mine.signs()) == len(theirs.signs())
    x[0, 0] = torch.inf
    mine.steps(x, y, size)
    assert mine.first_diverged() == 0


@pytest.mark.skipif(not INTERPRETED, reason="needs Triton and no GPU")
def test_the_kernels_interpreted() -> None:
    passes(__name__, "steps_beside_autograd('cpu')")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_kernels_on_a_gpu() -> None:
    steps_beside_autograd("cuda")
