"""Norms of many tensors: both ways against float64, and what the compiled call is not for."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad

from batchlab.probes import norms
from batchlab.probes.hooks import on_gradient
from batchlab.probes.norms import Norms, of_rows, place
from batchlab.probes.per_example import PerExampleNorms

SHAPES: list[tuple[int, ...]] = [(), (1,), (0, 3), (17,), (33, 65), (3, 1, 129)]
EACH = {torch.float32: 1e-6, torch.float64: 1e-13}
COMPILED = {torch.float32: 1e-13, torch.float64: 1e-13}  # sums are in double whatever the terms


def tensors(dtype: torch.dtype, seed: int, scale: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(s, generator=generator, dtype=dtype) for s in SHAPES]


def torchs_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norms, "_fits", lambda _: False)


@pytest.mark.parametrize("dtype", EACH)
@pytest.mark.parametrize("compiled", [True, False])
def test_against_double(
    dtype: torch.dtype, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, begun = tensors(dtype, 0), tensors(dtype, 1)
    ours = Norms(now, begun)
    if not compiled:
        torchs_way(monkeypatch)
    told, moved = ours.of(now), ours.moved(now)
    assert isinstance(told, np.ndarray) == isinstance(moved, np.ndarray) == compiled
    tolerance = (COMPILED if compiled else EACH)[dtype]
    norm_P = [float(t.double().norm()) for t in now]
    distance_P = [float((t - b).double().norm()) for t, b in zip(now, begun, strict=True)]
    np.testing.assert_allclose(np.asarray(told), norm_P, rtol=tolerance)
    np.testing.assert_allclose(np.asarray(moved), distance_P, rtol=tolerance)
    with pytest.raises(AssertionError):  # the negative control: from where they did not begin
        np.testing.assert_allclose(np.asarray(moved), norm_P, rtol=0.01)


def test_squares_that_fall_out_of_single_precision() -> None:
    for scale in (1e-30, 1e30):
        now = tensors(torch.float32, 0, scale)
        expected = [float(t.double().norm()) for t in now]
        np.testing.assert_allclose(np.asarray(Norms(now).of(now)), expected, rtol=1e-13)
    now = [torch.tensor([1.0, torch.inf]), torch.tensor([1.0, torch.nan])]
    told = np.asarray(Norms(now).of(now))
    assert np.isinf(told[0])
    assert np.isnan(told[1])


OTHERS: dict[str, Callable[[Tensor], Tensor]] = {
    "not contiguous": lambda t: t.mT.contiguous().mT,
    "expanded": lambda t: t[:1].expand(t.shape),
    "of another type": lambda t: t.double(),
    "half": lambda t: t.bfloat16(),
    "a part": lambda t: t[:1],
    "a subclass": lambda t: t.as_subclass(type("Own", (Tensor,), {})),
}


@pytest.mark.parametrize("other", OTHERS)
def test_what_the_compiled_call_is_not_for(other: str) -> None:
    now, begun = torch.randn(3, 4), torch.zeros(3, 4)
    ours = Norms([now], [begun])
    assert isinstance(ours.of([now]), np.ndarray)
    changed = OTHERS[other](now)
    told = ours.of([changed])
    assert isinstance(told, Tensor)
    torch.testing.assert_close(told[0].double(), changed.double().norm(), rtol=1e-6, atol=0)
    if other != "a part":
        assert place(changed, torch.ones(3, 2), torch.Size([3, 2])) is None
    assert place(now, torch.ones(3, 2)[:1].expand(3, 2), torch.Size([3, 2])) is None


def test_large_tensors_are_left_to_several_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [torch.randn(norms.ONE_THREAD + 1)]
    for threads, way in ((norms.FEW_THREADS, np.ndarray), (norms.FEW_THREADS + 1, Tensor)):
        monkeypatch.setattr(torch, "get_num_threads", lambda n=threads: n)
        assert isinstance(Norms(now).of(now), way)
    few = [t[1:] for t in now]
    assert isinstance(Norms(few).of(few), np.ndarray)


def test_memory_that_has_moved() -> None:
    p, begun = nn.Parameter(torch.ones(5)), torch.zeros(5)
    ours = Norms([p], [begun])
    p.data = torch.full((5,), 2.0)
    assert float(ours.moved([p])[0]) == pytest.approx(2 * 5**0.5)
    p.data = torch.full((5,), 3.0).double()
    assert float(ours.moved([p])[0]) == pytest.approx(3 * 5**0.5)


@pytest.mark.parametrize("dtype", EACH)
def test_rows(dtype: torch.dtype) -> None:
    a, d = torch.randn(7, 33, dtype=dtype), torch.randn(7, 5, dtype=dtype)
    both = torch.einsum("bi,bo->boi", a.double(), d.double())
    there = place(a, d.view(7, 1, 5), torch.Size([7, 5]))
    assert there is not None
    told = of_rows(*there, dtype)
    assert told == pytest.approx((float(both.norm()), float(d.double().norm())), rel=1e-13)
    assert there == place(a, d, torch.Size([7, 5]))
    assert told != pytest.approx((float(a.norm() * d.norm()), float(d.norm())), rel=1e-3)
    assert place(a[1:], d, torch.Size([7, 5])) is None


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv1d(1, 2, 3), nn.Flatten(), nn.Linear(12, 6), nn.ReLU(inplace=True), nn.Linear(6, 3)
    )


@pytest.mark.parametrize("micro_batches", [1, 3])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_layers_of_both_kinds_add_up_as_by_torch(
    micro_batches: int, reduction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = []
    for compiled in (True, False):
        if not compiled:
            torchs_way(monkeypatch)
        model, x = network().double(), torch.linspace(-1, 2, 48).double().sin().view(6, 1, 8)
        with PerExampleNorms(model) as seen:
            for part in x.chunk(micro_batches):
                loss = model(part).square().sum(1)
                (loss.mean() if reduction == "mean" else loss.sum()).backward()
            if compiled:
                assert isinstance(seen._layers[1].passes[0][2][0], float)
                assert isinstance(seen._layers[0].passes[0][2][0], Tensor)
            told.append(seen.take(reduction))  # type: ignore[arg-type]
    assert isinstance(told[0].norms, tuple) != isinstance(told[1].norms, tuple)
    torch.testing.assert_close(told[0].norms_2P, told[1].norms_2P, rtol=1e-12, atol=0)
    assert told[0][1:] == told[1][1:]


def test_a_transform_of_torch_func_passes_by() -> None:
    model, x = network(), torch.randn(4, 1, 8)
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(p: dict[str, Tensor]) -> Tensor:
        told: Tensor = functional_call(model, p, (x,)).square().sum()
        return told

    plain = grad(loss)(parameters)
    with PerExampleNorms(model):
        watched = grad(loss)(parameters)
    for name, g in plain.items():
        assert torch.equal(watched[name], g)


def test_a_hook_without_a_handle_beside_those_of_others() -> None:
    w, seen = torch.ones(3, requires_grad=True), []
    z = w * 2
    z.register_hook(lambda d: d * 3)
    on_gradient(z, lambda d: seen.append(float(d.sum())))
    z.relu_().sum().backward()
    assert seen == [9.0]
    y = w * 2
    on_gradient(y, lambda d: seen.append(float(d.sum())))
    other = y.register_hook(lambda d: d * 5)
    other.remove()
    y.register_hook(lambda d: d * 7)
    (y * 4).sum().backward()
    assert seen == [9.0, 12.0]
    assert w.grad is not None
    assert w.grad.tolist() == [2 * 3 + 2 * 4 * 7] * 3
    on_gradient(w, lambda d: seen.append(float(d.sum())))  # a leaf
    (w * 2).sum().backward()
    assert seen[2:] == [6.0]


def test_sparse_tensors_have_the_norms_of_dense_ones() -> None:
    dense, rows = torch.zeros(4, 3), torch.randn(3, 3)
    index = torch.tensor([[2, 0, 2]])  # a row in two pieces
    dense.index_add_(0, index[0], rows)
    sparse = torch.sparse_coo_tensor(index, rows, (4, 3), check_invariants=True)
    told = Norms([dense]).of([sparse])
    torch.testing.assert_close(torch.as_tensor(told), dense.norm()[None])
