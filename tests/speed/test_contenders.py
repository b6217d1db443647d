"""The contenders train the same model: what is compared is one computation, three times."""

import pytest
import torch

from batchlab.spec import Model, Optimizer, Phase
from batchlab.speed.contenders import (
    Batchlab,
    Case,
    Contender,
    Eager,
    Naive,
    Shuffled,
    plain_optimizer,
)
from batchlab.workloads.base import Data

SAMPLES = 23


@pytest.fixture
def case() -> Case:
    g = torch.Generator().manual_seed(1)
    x_NI = torch.randn(SAMPLES, 5, generator=g)
    y_N = torch.randint(3, (SAMPLES,), generator=g)
    return Case("toy", Data(x_NI, y_N, x_NI, y_N, 3), Model(hidden=(7, 6)), 0.1)


def weights(one: Contender) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in one.model.parameters()])


@pytest.mark.parametrize("size", [1, 4, SAMPLES])
def test_the_engine_and_the_eager_loop_take_the_same_steps(case: Case, size: int) -> None:
    phase, ended = case.phase(size), []
    for make in (Eager, Batchlab):
        one = make(case, phase, Shuffled(case.data))
        one.start()
        before = weights(one).clone()
        one.take(70)  # over several epochs, and over the engine's look for divergence
        assert (weights(one) - before).norm() > 0.1
        ended.append(weights(one))
    assert torch.allclose(ended[0], ended[1], atol=1e-4)


def test_a_full_batch_is_the_same_to_the_naive_script(case: Case) -> None:
    phase, ended = case.phase(SAMPLES), []
    for one in (Naive(case, phase), Eager(case, phase, Shuffled(case.data))):
        one.start()
        one.take(3)
        ended.append(weights(one))
    assert torch.allclose(ended[0], ended[1], atol=1e-5)


def test_a_round_begins_at_the_initial_point(case: Case) -> None:
    phase = case.phase(4)
    shuffled = Shuffled(case.data)
    for one in (Naive(case, phase), Eager(case, phase, shuffled), Batchlab(case, phase, shuffled)):
        one.start()
        one.take(2)
        one.start()
        initial = torch.cat([p.detach().flatten() for p in case.fresh().parameters()])
        assert torch.equal(weights(one), initial)


def test_the_naive_script_adds_up_its_loss(case: Case) -> None:
    one = Naive(case, case.phase(4))
    one.start()
    one.take(6)
    assert 0 < one.running_loss < 6 * 10


def test_an_epoch_visits_a_sample_once_and_drops_its_short_batch(case: Case) -> None:
    shuffled, size = Shuffled(case.data), 4
    seen = []
    for steps in (2, 3, 5):  # an epoch has five full batches
        for x_NI, y_N in shuffled.take(steps, size):
            assert len(y_N) % size == 0
            where = (x_NI[:, None] == case.data.train_x[None]).all(-1).nonzero()[:, 1]
            assert torch.equal(case.data.train_y[where], y_N)
            seen += where.tolist()
    epochs = seen[:20], seen[20:]
    assert all(len(set(rows)) == 20 for rows in epochs)
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)],
)
def test_the_plain_optimizer_is_the_phase_s(case: Case, name: str, expected: type) -> None:
    chosen = Optimizer.model_validate({"name": name, "weight_decay": 0.01})
    phase = Phase(batch_size=4, learning_rate=0.3, steps=1, optimizer=chosen)
    made = plain_optimizer(case.fresh(), phase)
    assert type(made) is expected
    assert (made.defaults["lr"], made.defaults["weight_decay"]) == (0.3, 0.01)
