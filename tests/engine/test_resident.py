"""The resident kernel's steps are the plain ones: interpreted on a CPU, compiled on a GPU."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from batchlab.engine import mlp
from batchlab.engine.draws import generator
from batchlab.engine.recorder import again
from batchlab.engine.replay import Replayed, replayed
from batchlab.engine.resident import RESIDENT, ResidentSGD, divide, division
from batchlab.engine.step import ClosedForm, InPlaceSGD, Stepper, stepper
from batchlab.engine.train import train
from batchlab.spec import Model, Optimizer
from batchlab.workloads.mlp import build
from tests import toy
from tests.engine.interpreted import INTERPRETED, SideBySide, prepare, side_by_side

Shape = tuple[int, int, int, int]  # inputs, hidden units, hidden units, classes
ARTICLE = (784, 1024, 1024, 10)
ODD = (5, 9, 4, 3)
RATE = 0.1
NEAR = 1e-5
PROGRAMS = 3  # of the interpreter at a time

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
needs_interpreter = pytest.mark.skipif(
    not INTERPRETED, reason="needs Triton, and no GPU, on which it would not interpret"
)


def layers_of(model: nn.Module) -> list[nn.Linear]:
    layers = mlp.linear_layers(model)
    assert layers is not None
    return layers


def network(shape: Shape, device: str = "cpu") -> nn.Sequential:
    inputs, first, second, classes = shape
    return build(Model(hidden=(first, second)), inputs, classes, generator(0, "init")).to(device)


def samples(shape: Shape, count: int, device: str = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(count, shape[0], generator=g)
    x *= (4 / shape[0]) ** 0.5  # so that steps are stable
    return x.to(device), torch.randint(shape[3], (count,), generator=g).to(device)


def on_one_program(model: nn.Module) -> ResidentSGD:
    layers = layers_of(model)
    parts = divide(layers, 1)
    assert parts is not None
    assert parts.programs == 1
    return ResidentSGD(layers, RATE, parts)


def on_the_gpu(model: nn.Module) -> ResidentSGD:
    parts = division(layers_of(model))
    assert parts is not None
    return ResidentSGD(layers_of(model), RATE, parts)


def farthest(model: nn.Module, plain: nn.Module) -> float:
    """The largest difference of any parameter from the plain one's, relative to its norm."""
    pairs = zip(model.parameters(), plain.parameters(), strict=True)
    return max(float((a - b).detach().norm() / b.detach().norm()) for a, b in pairs)


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def plain_steps(shape: Shape, x: torch.Tensor, y: torch.Tensor, size: int) -> nn.Module:
    """InPlaceSGD's, in double and as single precision keeps it."""
    model = network(shape, str(x.device)).double()
    InPlaceSGD(layers_of(model), RATE).steps(x.double(), y, size)
    return model.float()


@pytest.fixture(scope="module")
def interpreter() -> None:
    prepare()


@pytest.fixture(scope="module")
def programs() -> Iterator[SideBySide]:
    with side_by_side(PROGRAMS) as pool:
        yield pool


def test_a_network_is_divided_among_the_processors_or_refused() -> None:
    parts = divide(layers_of(network(ARTICLE)), 132)
    assert parts is not None
    assert (parts.first_each, parts.second_each, parts.programs) == (8, 8, 128)
    assert parts.top == (8, 2)
    assert parts.weights == 8 * 1024 + 2 * 8 * 1024 + 10 * 1024
    few = divide(layers_of(network(ODD)), 4)
    assert few is not None
    assert (few.first_each, few.second_each, few.programs) == (4, 1, 4)
    assert few.top == (2, 1)
    assert few.weights == 4 * 8 + 1 * 16 + 4 * 4 + (2 + 1) * 4
    assert divide(layers_of(network(ARTICLE)), 100) is None  # twice as many units each
    assert divide(layers_of(network((784, 1100, 1024, 10))), 132) is None
    deep = build(Model(hidden=(4, 4, 4)), 6, 3, generator(0, "init"))
    assert divide(layers_of(deep), 132) is None
    assert division(layers_of(network(ODD))) is None  # on a CPU


def test_small_batches_of_plain_sgd_are_resident(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchlab.engine.resident.division", lambda layers: divide(layers, 4))
    monkeypatch.setattr("batchlab.engine.step.can_compile", lambda *_: False)
    model = network(ODD)

    def made(size: int, optimizer: Optimizer | None = None) -> Stepper:
        phase = toy.phase(size, optimizer=optimizer)
        return replayed(stepper(model, phase), again, torch.device("cpu"))

    assert isinstance(made(RESIDENT), ResidentSGD)  # and not replayed
    assert isinstance(made(RESIDENT + 1), Replayed)
    assert isinstance(made(1, Optimizer(momentum=0.5)), Replayed)
    monkeypatch.setattr("batchlab.engine.resident.division", lambda _: None)
    assert isinstance(stepper(model, toy.phase(1)), InPlaceSGD)
    assert isinstance(stepper(model, toy.phase(1, optimizer=Optimizer(name="adam"))), ClosedForm)


def test_a_kernel_that_can_not_be_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """Is said to be none once, and the steps are plain ones; one that has run is another matter."""

    def refuse(*_: object) -> None:
        raise TypeError("no such option\nand more")

    monkeypatch.setattr(ResidentSGD, "_take", refuse)
    x, y = samples(ODD, 7)
    model, plain = network(ODD), network(ODD)
    one, twin = on_one_program(model), InPlaceSGD(layers_of(plain), RATE)
    with pytest.warns(RuntimeWarning, match="plain steps: TypeError: no such option$"):
        one.steps(x, y, 2)
    one.steps(x, y, 2)
    for _ in range(2):
        twin.steps(x, y, 2)
    assert equal(model, plain)
    assert len(torch.cat(one.signs())) == 8

    ran = on_one_program(network(ODD))
    monkeypatch.setattr(ResidentSGD, "_take", lambda *_: None)
    ran.steps(x, y, 2)
    monkeypatch.setattr(ResidentSGD, "_take", refuse)
    with pytest.raises(TypeError, match="no such option"):
        ran.steps(x, y, 2)


@needs_interpreter
@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("shape", [ODD, (6, 16, 8, 4)], ids=str)
def test_steps_are_the_plain_ones(shape: Shape, size: int) -> None:
    x, y = samples(shape, 7)  # the last batch is short
    model = network(shape)
    one = on_one_program(model)
    one.steps(x, y, size)
    assert one.first_diverged() is None
    assert farthest(model, plain_steps(shape, x, y, size)) < NEAR < farthest(model, network(shape))


@needs_interpreter
@pytest.mark.usefixtures("interpreter")
def test_a_stretch_may_be_cut_anywhere() -> None:
    x, y = samples(ODD, 7)
    whole, cut = network(ODD), network(ODD)
    on_one_program(whole).steps(x, y, 2)
    one = on_one_program(cut)
    for rows in (slice(0, 4), slice(4, 6), slice(6, 7)):
        one.steps(x[rows], y[rows], 2)
    assert equal(whole, cut)


@needs_interpreter
@pytest.mark.usefixtures("interpreter")
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning", "ignore:All-NaN:RuntimeWarning")
def test_the_first_step_that_is_not_finite() -> None:
    x, y = samples(ODD, 8)
    one = on_one_program(network(ODD))
    one.steps(x[:4], y[:4], 2)
    x[7] = torch.nan
    one.steps(x[4:], y[4:], 2)
    assert one.first_diverged() == 3
    assert one.first_diverged() is None


@needs_interpreter
# The last of the programs has no unit of the second layer, then none of the first.
@pytest.mark.parametrize(("shape", "size"), [(ODD, 2), ((6, 2, 9, 2), 1)], ids=str)
def test_programs_side_by_side_take_the_same_steps(
    programs: SideBySide, monkeypatch: pytest.MonkeyPatch, shape: Shape, size: int
) -> None:
    monkeypatch.setattr("batchlab.engine.resident_kernel.take", programs)
    x, y = samples(shape, 7)
    model = network(shape)
    parts = divide(layers_of(model), PROGRAMS)
    assert parts is not None
    assert parts.programs == PROGRAMS
    one = ResidentSGD(layers_of(model), RATE, parts)
    one.steps(x[:4], y[:4], size)
    one.steps(x[4:], y[4:], size)  # which finds the words as the first has left them
    assert one.first_diverged() is None
    assert farthest(model, plain_steps(shape, x, y, size)) < NEAR < farthest(model, network(shape))


@needs_gpu
@pytest.mark.parametrize(  # few: each is a kernel to be compiled
    ("shape", "size"),
    [(ODD, 1), (ODD, 3), ((64, 256, 256, 10), 2), (ARTICLE, 1), (ARTICLE, RESIDENT)],
    ids=str,
)
def test_steps_on_a_gpu_are_the_plain_ones(shape: Shape, size: int) -> None:
    x, y = samples(shape, 101, "cuda")
    ends = [network(shape, "cuda") for _ in range(3)]
    for model in ends[:2]:
        one = on_the_gpu(model)
        one.steps(x, y, size)
        assert one.first_diverged() is None
    one = on_the_gpu(ends[2])
    cut = 5 * size
    one.steps(x[:cut], y[:cut], size)
    one.steps(x[cut:], y[cut:], size)
    assert equal(ends[0], ends[1])
    assert equal(ends[0], ends[2])
    plain, start = plain_steps(shape, x, y, size), network(shape, "cuda")
    assert farthest(ends[0], plain) < NEAR < farthest(ends[0], start)


@needs_gpu
def test_the_first_step_that_is_not_finite_on_a_gpu() -> None:
    x, y = samples(ODD, 3000, "cuda")
    x[2345] = torch.nan
    one = on_the_gpu(network(ODD, "cuda"))
    one.steps(x[:2000], y[:2000], 2)
    one.steps(x[2000:], y[2000:], 2)
    assert one.first_diverged() == 1172


@needs_gpu
def test_a_whole_training_on_a_gpu() -> None:
    data = toy.data()
    on_cpu = train(toy.spec(toy.phase(3)), data)
    on_gpu = train(toy.spec(toy.phase(3)), data.to(torch.device("cuda"), torch.float32))
    for name, tensor in on_cpu.tensors.items():
        assert torch.allclose(tensor, on_gpu.tensors[name], rtol=1e-4, atol=1e-6)
