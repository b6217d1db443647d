"""Per-example norms from hooks against torch.func's per-example gradients, in float64."""

import gc
import weakref
from collections.abc import Callable
from math import sqrt

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from batchlab.probes import squares
from batchlab.probes.noise_scale import NoiseStatistics
from batchlab.probes.parts import Parts
from batchlab.probes.per_example import PerExampleNorms, unsupported
from batchlab.record import ALL
from batchlab.spec import UserError

B = 5


def floats(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(B, *shape, dtype=torch.float64)


def tokens(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randint(4, (B, *shape))  # of 7: some repeat, some are the padding


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "perceptron": (
        lambda: nn.Sequential(nn.Linear(7, 6), nn.ReLU(inplace=True), nn.Linear(6, 5, bias=False)),
        floats(7),
    ),
    "short sequence (Gram)": (lambda: nn.Linear(16, 12), floats(3, 16)),
    "long sequence (formed)": (lambda: nn.Linear(3, 2), floats(9, 3)),
    "sequence, changed in place": (
        lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2)),
        floats(5, 3),
    ),
    "convolution, changed in place": (
        lambda: nn.Sequential(nn.Conv1d(2, 3, 2), nn.ReLU(inplace=True), nn.Conv1d(3, 2, 2)),
        floats(2, 5),
    ),
    "norm and embedding, changed in place": (
        lambda: nn.Sequential(
            nn.Embedding(7, 4), nn.ReLU(inplace=True), nn.LayerNorm(4), nn.ReLU(inplace=True)
        ),
        tokens(5),
    ),
    "two inner dimensions": (lambda: nn.Linear(3, 4), floats(2, 3, 3)),
    "embedding": (lambda: nn.Sequential(nn.Embedding(7, 3), nn.Linear(3, 3)), tokens(6)),
    "embedding, one token": (lambda: nn.Embedding(7, 3), tokens()),
    "embedding, padded": (lambda: nn.Embedding(7, 3, padding_idx=2), tokens(8)),
    "embedding, two dimensions": (lambda: nn.Embedding(7, 3), tokens(3, 2)),
    "layer norm": (lambda: nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 2)), floats(6)),
    "layer norm, sequence": (
        lambda: nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 2)),
        floats(4, 6),
    ),
    "layer norm, two dimensions": (lambda: nn.LayerNorm((4, 3)), floats(2, 4, 3)),
    "layer norm without bias": (lambda: nn.LayerNorm(6, bias=False), floats(4, 6)),
    "rms norm": (lambda: nn.RMSNorm(6), floats(4, 6)),
    "group norm": (lambda: nn.GroupNorm(2, 6), floats(6, 3, 2)),
    "group norm, one position": (lambda: nn.GroupNorm(2, 6), floats(6)),
    "bias registered first": (lambda: bias_first(), floats(7)),
    "conv2d": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 2)),
        floats(2, 4, 4),
    ),
    "conv2d, strided, padded, grouped": (
        lambda: nn.Conv2d(4, 6, (3, 2), stride=2, padding=(1, 2), groups=2, bias=False),
        floats(4, 5, 6),
    ),
    "conv2d, dilated, same, reflected": (
        lambda: nn.Conv2d(2, 3, 3, padding="same", dilation=2, padding_mode="reflect"),
        floats(2, 6, 6),
    ),
    "conv2d, few pixels (Gram)": (lambda: nn.Conv2d(8, 9, 2), floats(8, 2, 2)),
    "conv1d": (lambda: nn.Conv1d(2, 3, 3, stride=2, padding=1, dilation=2), floats(2, 9)),
    "conv1d, depthwise, circular": (
        lambda: nn.Conv1d(3, 3, 3, padding=1, groups=3, padding_mode="circular"),
        floats(3, 5),
    ),
}


def bias_first() -> nn.Module:
    """As a layer is whose weight was pruned or parametrized for a while."""
    layer = nn.Linear(7, 3)
    weight = layer.weight
    del layer.weight
    layer.weight = weight
    return layer


def model_and_input(case: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(3)
    make, draw = CASES[case]
    model = make().double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))  # gains and biases of norms are not 1 and 0
    return model, draw()


def each_loss(z: Tensor) -> Tensor:
    """One number an example, with every output in it."""
    flat = z.flatten(1)
    return (flat * torch.linspace(-1, 2, flat.shape[1], dtype=z.dtype)).tanh().square().sum(1)


def own_gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Each example's gradient, flattened, by parameter (B, W)."""

    def loss(p: dict[str, Tensor], x: Tensor) -> Tensor:
        return each_loss(functional_call(model, p, (x[None],))).sum()

    parameters = {name: p.detach() for name, p in model.named_parameters()}
    told: dict[str, Tensor] = vmap(grad(loss), in_dims=(None, 0))(parameters, x)
    return {name: g.flatten(1) for name, g in told.items()}


def assert_exact(told: Parts, names: tuple[str, ...], own: dict[str, Tensor]) -> None:
    assert set(names) == set(own)
    for p, name in enumerate(names):
        g = own[name]
        torch.testing.assert_close(
            told.norms_2P[0, p] ** 2, g.square().sum(1).mean(), rtol=1e-10, atol=0
        )
        torch.testing.assert_close(
            told.norms_2P[1, p] ** 2, g.mean(0).square().sum(), rtol=1e-10, atol=1e-20
        )


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_against_vmap(case: str, reduction: str) -> None:
    model, x = model_and_input(case)
    own = own_gradients(model, x)
    with PerExampleNorms(model) as norms:
        loss = each_loss(model(x))
        (loss.mean() if reduction == "mean" else loss.sum()).backward()
        told = norms.take(reduction)  # type: ignore[arg-type]
    assert_exact(told, norms.names, own)
    assert (told.examples, told.small, told.big) == (B, 1, B)


@pytest.mark.parametrize("case", ["perceptron", "long sequence (formed)", "embedding"])
def test_negative_control_the_wrong_reduction(case: str) -> None:
    model, x = model_and_input(case)
    own = own_gradients(model, x)
    with PerExampleNorms(model) as norms:
        each_loss(model(x)).mean().backward()
        told = norms.take("sum")
    with pytest.raises(AssertionError):
        assert_exact(told, norms.names, own)


def test_negative_control_a_sequence_is_not_its_positions() -> None:
    a, d = torch.randn(B, 4, 3).double(), torch.randn(B, 4, 2).double()
    truth = torch.einsum("bto,bti->boi", d, a).flatten(1).norm(dim=1)
    torch.testing.assert_close(squares.linear(a, d), truth, rtol=1e-12, atol=0)
    wrong = (a.square().sum(2) * d.square().sum(2)).sum(1).sqrt()
    assert not torch.allclose(wrong, truth, rtol=0.05)


def test_formed_gradients_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    a, d = torch.randn(B, 9, 3).double(), torch.randn(B, 9, 2).double()
    whole = squares.linear(a, d)
    monkeypatch.setattr(squares, "AT_ONCE", 12)  # two examples at a time
    assert torch.equal(squares.linear(a, d), whole)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_accumulation_with_a_short_last_micro_batch(reduction: str) -> None:
    """Losses scaled by 1/M: micro-batches weigh equally though the last is short."""
    model, x = model_and_input("perceptron")
    own = own_gradients(model, x)
    chunks, scale = [x[:2], x[2:4], x[4:]], 1 / 3
    with PerExampleNorms(model) as norms:
        for chunk in chunks:
            loss = each_loss(model(chunk))
            ((loss.mean() if reduction == "mean" else loss.sum()) * scale).backward()
        told = norms.take(reduction, scale)  # type: ignore[arg-type]
    weight = [1 / 6, 1 / 6, 1 / 6, 1 / 6, 1 / 3] if reduction == "mean" else [1 / 5] * 5
    assert 1 / told.big == pytest.approx(sum(w * w for w in weight))
    for p, name in enumerate(norms.names):
        mean = torch.tensor(weight, dtype=torch.float64) @ own[name]
        square = torch.tensor(weight, dtype=torch.float64) @ own[name].square().sum(1)
        expected = torch.stack([square.sqrt(), mean.norm()])
        torch.testing.assert_close(told.norms_2P[:, p], expected, rtol=1e-10, atol=0)


def test_a_loss_scaler_cancels() -> None:
    model, x = model_and_input("perceptron")
    with PerExampleNorms(model) as norms:
        scale = torch.tensor(1024.0)
        (each_loss(model(x)).mean() * scale).backward()
        told = norms.take("mean", scale)
    assert_exact(told, norms.names, own_gradients(model, x))


def test_diversity_is_one_more_than_the_noise_scale() -> None:
    """n sum |g_i|^2 / |sum g_i|^2 = 1 + tr(Sigma) / |gbar|^2, Sigma of these examples (1/n)."""
    model, x = model_and_input("perceptron")
    with PerExampleNorms(model) as norms:
        each_loss(model(x)).mean().backward()
        step = norms.take()
    statistics = NoiseStatistics(norms.names)
    statistics.update(step)
    series = statistics.compute()[ALL]
    g = torch.cat(list(own_gradients(model, x).values()), dim=1)
    diversity = float(B * g.square().sum() / g.sum(0).square().sum())
    tau, square = float(series.trace_S[0]), float(series.square_S[0])
    assert tau == pytest.approx(float(torch.cov(g.T).trace()), rel=1e-10)
    assert (B - 1) / B * tau / (square + tau / B) == pytest.approx(diversity - 1, rel=1e-10)


def test_half_precision_activations_are_widened() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 4))
    x = torch.randn(B, 6, 64)
    with PerExampleNorms(model) as norms:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            z = model(x)
            z.float().square().sum((1, 2)).mean().backward()  # inside: products would be rounded
        told = norms.take()
    assert told.norms_2P.dtype == torch.float32

    def loss(p: dict[str, Tensor], x: Tensor) -> Tensor:
        told: Tensor = functional_call(model, p, (x[None],)).square().sum()
        return told

    own = vmap(grad(loss), in_dims=(None, 0))(dict(model.named_parameters()), x)
    expected = torch.stack([own[name].detach().norm() / sqrt(B) for name in norms.names])
    torch.testing.assert_close(told.norms_2P[0], expected, rtol=0.02, atol=0)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        told: Tensor = self.fc(self.fc(x).tanh())
        return told


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
        self.head.weight = self.table.weight


def batch_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))


def weight_norm() -> nn.Module:
    told: nn.Module = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    return told


@pytest.mark.parametrize(
    ("make", "name", "why"),
    [
        (batch_norm, "1", "batch norm"),
        (Tied, "head", "shared with table"),
        (lambda: nn.Sequential(nn.LSTM(4, 4)), "0", "parameters in a LSTM"),
        (lambda: nn.MultiheadAttention(4, 2), "out_proj", "NonDynamically"),
        (lambda: nn.Sequential(nn.Embedding(7, 3, sparse=True)), "0", "sparse"),
        (weight_norm, "parametrizations.weight", "_WeightNorm|ParametrizationList"),
    ],
)
def test_what_has_no_norms_is_named(make: Callable[[], nn.Module], name: str, why: str) -> None:
    model = make()
    assert name in unsupported(model)
    with pytest.raises(UserError, match=rf"{name} .*({why})") as said:
        PerExampleNorms(model)
    assert "\n" not in str(said.value)


def test_a_module_called_twice_is_refused_and_the_next_step_is_fine() -> None:
    model, x = Twice(), torch.randn(B, 4)
    with PerExampleNorms(model) as norms:
        model(x).sum().backward()
        with pytest.raises(UserError, match="fc is called twice"):
            norms.take()
        model.zero_grad()
        model.fc(x).sum().backward()
        norms.take()


def test_what_only_a_pass_can_show() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.place = nn.Linear(3, 4), nn.Embedding(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            told: Tensor = self.fc(x) + self.place(torch.arange(6))
            return told

    model = Positions()
    with PerExampleNorms(model) as norms:
        model(torch.randn(B, 6, 3)).sum().backward()
        with pytest.raises(UserError, match="place saw batches of"):
            norms.take()
        F.linear(torch.randn(B, 3), model.fc.weight).sum().backward()
        with pytest.raises(UserError, match="no gradient has passed fc"):
            norms.take()
        model(torch.randn(B, 6, 3)).sum().backward()
        model.zero_grad()
        norms.discard()
    one = nn.Linear(3, 2)
    with PerExampleNorms(one) as norms:
        one(torch.randn(1, 3)).sum().backward()
        with pytest.raises(UserError, match="two examples"):
            norms.take()


def test_frozen_parameters_are_left_out() -> None:
    model, x = model_and_input("perceptron")
    model.get_parameter("0.weight").requires_grad_(False)
    with PerExampleNorms(model) as norms:
        each_loss(model(x)).mean().backward()
        told = norms.take()
    assert norms.names == ("0.bias", "2.weight")
    own = own_gradients(model, x)
    assert_exact(told, norms.names, {name: own[name] for name in norms.names})


def test_checkpointed_activations() -> None:
    from torch.utils.checkpoint import checkpoint

    model, x = model_and_input("perceptron")
    own = own_gradients(model, x)
    with PerExampleNorms(model) as norms:
        each_loss(checkpoint(model, x, use_reentrant=False)).mean().backward()
        assert_exact(norms.take(), norms.names, own)


def test_hooks_leave_training_and_memory_alone() -> None:
    model, x = model_and_input("perceptron")
    each_loss(model(x)).mean().backward()
    plain = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    norms = PerExampleNorms(model)
    with torch.no_grad():
        model(x)  # an evaluation in between
    x = x.clone()
    seen = weakref.ref(x.untyped_storage())
    loss = each_loss(model(x)).mean()
    loss.backward()
    for p, g in zip(model.parameters(), plain, strict=True):
        assert p.grad is not None
        assert torch.equal(p.grad, g)
    node = weakref.ref(loss)
    norms.take()
    del loss, x
    gc.collect()
    assert node() is None
    assert seen() is None
    norms.remove()
    assert not any(m._forward_hooks for m in model.modules())


def test_inactive_steps_cost_no_norms() -> None:
    model, x = model_and_input("perceptron")
    norms = PerExampleNorms(model)
    norms.active = False
    each_loss(model(x)).mean().backward()
    norms.active = True
    with pytest.raises(UserError, match="no gradient has passed"):
        norms.take()
    norms.remove()
