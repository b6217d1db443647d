"""What small linear layers keep to the step: as measured in hooks, and never another batch."""

import gc
import weakref
from collections.abc import Callable, Iterable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad

from batchlab import GradientNorm, NoiseScale
from batchlab.probes import per_example
from batchlab.probes.norms import Norms
from batchlab.probes.parts import Parts
from batchlab.probes.per_example import PerExampleNorms, Reduction
from batchlab.spec import UserError

B = 6


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))


def frozen() -> nn.Module:
    """Layers without a bias, with a bias alone in the graph's middle, and with weights alone."""
    model = nn.Sequential(nn.Linear(4, 8, bias=False), nn.ReLU(inplace=True), nn.Linear(8, 3))
    model.get_parameter("2.bias").requires_grad_(False)
    return model


def other_way_round() -> nn.Module:
    layer = nn.Linear(4, 3)
    weight, bias = layer.weight, layer.bias
    del layer.weight, layer.bias
    layer.bias, layer.weight = bias, weight
    return nn.Sequential(nn.Linear(4, 4), layer)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "plain": plain,
    "frozen": frozen,
    "bias first": other_way_round,
    "double": lambda: plain().double(),
}


def made(name: str = "plain") -> nn.Module:
    torch.manual_seed(0)
    return MODELS[name]()


def batches(model: nn.Module, sizes: Iterable[int] = (B,) * 5) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(1)
    dtype = next(model.parameters()).dtype
    for size in sizes:
        yield torch.randn(size, 4, generator=generator).to(dtype)


def backward(model: nn.Module, x: Tensor, reduction: Reduction = "mean") -> None:
    loss = model(x).square().sum(1)
    (loss.mean() if reduction == "mean" else loss.sum()).backward()


def watched(model: nn.Module, reduction: Reduction = "mean") -> tuple[list[Parts], list[int]]:
    """What each step told, and how many layers it had kept; weights move in between."""
    told, kept = [], []
    with PerExampleNorms(model) as norms:
        for x in batches(model, (B, B, B - 1, B)):
            model.zero_grad()
            backward(model, x, reduction)
            kept.append(len(norms._later.kept))
            told.append(norms.take(reduction))
            with torch.no_grad():
                for p in model.parameters():
                    if p.grad is not None:
                        p.sub_(p.grad, alpha=0.01)
    return told, kept


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", MODELS)
def test_as_measured_in_the_hooks(
    name: str, reduction: Reduction, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = sum(isinstance(m, nn.Linear) for m in made(name).modules())
    told, kept = watched(made(name), reduction)
    assert kept == [0, layers, layers, layers]
    monkeypatch.setattr(per_example, "SMALL", 0)
    expected, kept = watched(made(name), reduction)
    assert kept == [0, 0, 0, 0]
    for one, other in zip(told, expected, strict=True):
        assert one.norms == other.norms
        assert one[1:] == other[1:]
    assert told[0].norms != told[1].norms


def test_where_the_compiled_call_is_not_for_the_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    expected, _ = watched(made())
    monkeypatch.setattr(Norms, "_places", lambda *_: None)
    told, kept = watched(made())
    assert kept == [0, 3, 0, 0]
    for one, other in zip(told, expected, strict=True):
        torch.testing.assert_close(one.norms_2P, other.norms_2P, rtol=1e-6, atol=0)


def test_a_scaled_loss_and_a_gradient_norm_of_the_noise_scales() -> None:
    model = made()
    noise = NoiseScale(model, divided=4)
    plain_one = NoiseScale(model)
    norm, alone = GradientNorm(model, of=plain_one), GradientNorm(model)
    for x in batches(model):
        model.zero_grad()
        backward(model, x)
        for watch in (noise, plain_one, norm, alone):
            watch.step()
    scaled, told = noise.compute().estimate, plain_one.compute().estimate
    assert scaled.trace.effect == pytest.approx(16 * told.trace.effect, rel=1e-12)
    for name, values in norm.compute().values.items():
        assert values.tolist() == alone.compute().values[name].tolist()


def test_an_input_that_was_changed_in_place_is_refused_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, told = made(), []
    with PerExampleNorms(model) as norms:
        for k, x in enumerate(batches(model)):
            model.zero_grad()
            backward(model, x)
            if k == 2:
                x.zero_()
                with pytest.raises(UserError, match="0: its input was changed in place"):
                    norms.take()
            elif k > 2:
                x.zero_()  # where hooks measure, it does no harm
                told.append(norms.take())
            else:
                norms.take()
    monkeypatch.setattr(per_example, "SMALL", 0)
    with PerExampleNorms(model) as norms:
        for k, x in enumerate(batches(model)):
            model.zero_grad()
            backward(model, x)
            if k > 2:
                assert norms.take().norms == told[k - 3].norms
            else:
                norms.take()


def test_several_passes_after_steps_of_one_are_refused_once() -> None:
    model = made()
    with PerExampleNorms(model) as norms:
        for k, x in enumerate(batches(model)):
            model.zero_grad()
            if k < 2:
                backward(model, x)
                norms.take()
                continue
            backward(model, x[:4])
            backward(model, x[4:])
            assert norms.sizes == [4, 2]
            if k == 2:
                with pytest.raises(UserError, match="several times, those before it once"):
                    norms.take()
            else:
                assert norms.take().big == pytest.approx(4 / (1 / 4 + 1 / 2))
    with PerExampleNorms(model) as norms:  # the negative control: nothing is ever kept
        for x in batches(model):
            model.zero_grad()
            backward(model, x[:4])
            backward(model, x[4:])
            norms.take()


def test_passes_that_are_refused_without_keeping_are_with_it() -> None:
    model, x = made(), torch.randn(B, 4)
    first = model.get_submodule("0")
    with PerExampleNorms(model) as norms:
        for k in range(3):
            model.zero_grad()
            backward(model, x)
            norms.take()
            if k == 1:
                model(x * first(x).sum()).sum().backward()
                with pytest.raises(UserError, match="0 is called twice"):
                    norms.take()
    with PerExampleNorms(model) as norms:
        for _ in range(2):
            model.zero_grad()
            backward(model, x)
            norms.take()
        loss = model(x).sum()
        loss.backward(retain_graph=True)
        loss.backward()
        with pytest.raises(UserError, match="several times"):
            norms.take()
        model(x)  # never goes backward
        first(x).sum().backward()
        with pytest.raises(UserError, match="no gradient has passed 2"):
            norms.take()


def test_layers_that_go_backward_one_by_one() -> None:
    model = nn.ModuleList([nn.Linear(4, 3), nn.Linear(4, 3)])
    told = []
    with PerExampleNorms(model) as norms:
        for x in batches(model):
            for layer in model[::-1]:
                layer(x).square().sum(1).mean().backward()
            told.append(len(norms._later.kept))
            norms.take()
            model.zero_grad()
    assert told == [0, 2, 2, 2, 2]


def test_a_layer_that_is_too_large_ends_the_keeping(monkeypatch: pytest.MonkeyPatch) -> None:
    expected, _ = watched(made())
    monkeypatch.setattr(per_example, "SMALL", B * 13)  # of the last layer alone
    told, kept = watched(made())
    assert kept == [0, 2, 0, 0]
    for one, other in zip(told, expected, strict=True):
        assert one.norms == other.norms
    mixed = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 3))
    assert watched(mixed)[1] == [0, 0, 0, 0]


def test_no_more_than_so_many_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(per_example, "MANY", 3)
    model = made()
    with PerExampleNorms(model) as norms:
        x = torch.randn(B, 4)
        backward(model, x)
        norms.take()
        for _ in range(4):  # of a loop that forgot the step
            backward(model, x)
            assert len(norms._later.kept) == 3
    monkeypatch.setattr(per_example, "MANY", 2)
    assert watched(made())[1] == [0, 0, 0, 0]


def test_nothing_outlives_the_step() -> None:
    model = made()
    with PerExampleNorms(model) as norms:
        for x in batches(model):
            model.zero_grad()
            h = x * 1
            seen = weakref.ref(h.untyped_storage())
            backward(model, h)
            loss = model(h).sum()  # a pass that never goes backward
            node = weakref.ref(loss)
            model.zero_grad()
            backward(model, h)
            del loss
            gc.collect()
            assert node() is None
            norms.discard()
            del h
            gc.collect()
            assert seen() is None
            model.zero_grad()
            backward(model, x)
            norms.take()
        late = model(torch.randn(B, 4)).sum()
    late.backward()
    assert not norms._later.kept


def test_a_transform_of_torch_func_beside_it() -> None:
    model = made()
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(p: dict[str, Tensor], x: Tensor) -> Tensor:
        told: Tensor = functional_call(model, p, (x,)).square().sum()
        return told

    expected = grad(loss)(parameters, torch.ones(B, 4))
    with PerExampleNorms(model) as norms:
        for x in batches(model):
            told = grad(loss)(parameters, torch.ones(B, 4))
            for name, g in expected.items():
                assert torch.equal(told[name], g)
            norms.discard()
            model.zero_grad()
            backward(model, x)
            norms.take()


def test_half_precision_is_measured_in_its_hook_or_after() -> None:
    model = made()
    with PerExampleNorms(model) as norms:
        for k, x in enumerate(batches(model)):
            model.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=k > 1):
                loss = model(x).float().square().sum(1).mean()
            loss.backward()
            assert torch.isfinite(norms.take().norms_2P).all()


def test_a_gradient_that_is_missing_is_said_and_nothing_stays() -> None:
    model = made()
    with PerExampleNorms(model) as norms:
        for k, x in enumerate(batches(model)):
            backward(model, x)
            if k == 2:
                model.zero_grad()
                with pytest.raises(UserError, match="a gradient is missing"):
                    norms.take()
            else:
                norms.take()
            assert not norms.sizes
            model.zero_grad()
