"""A pass by the compiled loop and by matrix products, beside autograd."""

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from batchlab.engine import blocked, loop, passes
from batchlab.engine.passes import Start, Walker
from batchlab.engine.products import add_product, product
from batchlab.engine.sums import Sums

SAMPLES, RATE = 70, 0.05  # more than one block of the compiled loop, and a short batch in it
WIDTHS = {"none": (9, 5), "one": (9, 13, 5), "two": (9, 33, 17, 5), "three": (9, 12, 21, 18, 5)}


def perceptron(widths: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[nn.Linear]:
    torch.manual_seed(1)
    return [nn.Linear(i, o, dtype=dtype) for i, o in pairwise(widths)]


def samples(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(2)
    return torch.randn(SAMPLES, 9, generator=g, dtype=dtype), torch.randint(
        5, (SAMPLES,), generator=g
    )


def autograd(
    layers: list[nn.Linear],
    size: int,
    *,
    frozen: bool = False,
    drawn: torch.dtype = torch.float64,
) -> list[torch.Tensor]:
    """The sum of a pass's mean gradients, every layer's, by the loop that a reader would write."""
    x, y = samples(drawn)
    x = x.to(layers[0].weight.dtype)
    parameters = [p.detach().clone().requires_grad_() for m in layers for p in m.parameters()]
    total = [torch.zeros_like(p) for p in parameters]
    for rows in torch.arange(SAMPLES).split(size):
        h = x[rows]
        for k in range(len(layers)):
            z = F.linear(h, parameters[2 * k], parameters[2 * k + 1])
            h = z.relu()
        gradients = torch.autograd.grad(F.cross_entropy(z, y[rows]), parameters)
        total = [t + g for t, g in zip(total, gradients, strict=True)]
        if not frozen:
            with torch.no_grad():
                for p, g in zip(parameters, gradients, strict=True):
                    p.sub_(g, alpha=RATE)
    return total[::2]


def walk(
    layers: list[nn.Linear],
    size: int,
    *,
    deep: bool = True,
    replicas: int = 1,
    blocked: bool = False,
) -> list[torch.Tensor]:
    x, y = samples(layers[0].weight.dtype)
    with torch.no_grad():
        stacked = x.expand(replicas, *x.shape), y.expand(replicas, -1)
        walker = Walker(layers, *stacked, deep=deep, blocked=blocked)
        done = walker.walk(size, RATE)
        every = slice(None)
        return [done.sum(k, every)[-1] / -RATE for k in range(len(layers))]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 16, 64, SAMPLES])
@pytest.mark.parametrize("hidden", WIDTHS)
@pytest.mark.parametrize("how", ["compiled", "products", "replicas", "blocked", "shared"])
def test_every_layer_beside_autograd(
    hidden: str, size: int, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes, "SMALL", 0 if how in ("products", "replicas") else 1000)
    monkeypatch.setattr(blocked, "SHARED", 32 if how == "blocked" else 1000)
    layers = perceptron(WIDTHS[hidden])
    replicas = 3 if how in ("replicas", "blocked", "shared") else 1
    mine_by_layer = walk(layers, size, replicas=replicas, blocked=how in ("blocked", "shared"))
    for mine, theirs in zip(mine_by_layer, autograd(layers, size), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("size", [1, 4, 7, 8, 32])
def test_what_the_loop_changed_is_what_its_samples_say(size: int) -> None:
    layers = perceptron(WIDTHS["three"])
    x, y = samples()
    with torch.no_grad():
        done = Walker(layers, x[None], y[None], deep=True).walk(size, RATE)
        assert len(done.changes) == 2
        for k in range(len(layers)):
            every = done.sum(k, slice(None))
            assert every.is_contiguous()
            torch.testing.assert_close(
                every, done.sum(k, slice(0, SAMPLES)), rtol=1e-10, atol=1e-13
            )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_first_batch_is_what_a_walk_makes_of_it(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether or not it is taken from the start."""
    layers = perceptron(WIDTHS["three"], dtype)
    x, y = samples(dtype)
    made = []
    with torch.no_grad():
        for small in (0, 1000):
            monkeypatch.setattr(passes, "SMALL", small)
            monkeypatch.setattr(passes, "can_compile", lambda *_: False)
            made.append(Walker(layers, x[None], y[None], deep=True).walk(40, RATE))
    kind = 1e-4 if dtype == torch.float32 else 1e-10
    for of in zip(made[0].updates, made[1].updates, strict=True):
        one, other = (u[:, :40].double() for u in of)
        torch.testing.assert_close(one, other, rtol=kind, atol=kind / 100)


@pytest.mark.parametrize("blocked", [False, True])
def test_the_last_layer_alone(*, blocked: bool) -> None:
    layers = perceptron(WIDTHS["two"])
    for size in (1, 3, 20, SAMPLES):
        shallow, deep = (
            walk(layers, size, deep=deep, blocked=blocked)[-1] for deep in (False, True)
        )
        torch.testing.assert_close(shallow, deep, rtol=1e-12, atol=0)


def test_frozen_is_each_samples_own_gradient() -> None:
    layers = perceptron(WIDTHS["two"])
    x, y = samples()
    with torch.no_grad():
        walker = Walker(layers, x[None], y[None], deep=False)
        own = walker.frozen()
        walker.walk(40, RATE)
        walker.walk(2, RATE)
    for k, gradient in enumerate(autograd(layers, SAMPLES, frozen=True)):
        torch.testing.assert_close(
            own.sum(k, slice(None))[0] / SAMPLES, gradient, rtol=1e-10, atol=1e-12
        )


def test_the_start_of_a_draw_in_another_order() -> None:
    layers = perceptron(WIDTHS["two"], torch.float32)
    x, y = samples(torch.float32)
    places = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        start = Start.of(layers, x[None], y[None]).ordered(places)
        own, given = (
            Walker(layers, x[places][None], y[places][None], deep=False, start=known)
            for known in (None, start)
        )
        for one, other in zip(own.frozen().inputs, given.frozen().inputs, strict=True):
            torch.testing.assert_close(one, other)
        for size in (1, 8, 40):
            one, other = (walker.walk(size, RATE).sum(2, slice(None)) for walker in (own, given))
            torch.testing.assert_close(one, other, rtol=1e-5 if size == 40 else 1e-12, atol=0)
            assert not torch.allclose(
                one,
                Walker(layers, x[None], y[None], deep=False).walk(size, RATE).sum(2, slice(None)),
            )


def test_a_pass_leaves_no_trace() -> None:
    layers = perceptron(WIDTHS["two"])
    before = [p.detach().clone() for m in layers for p in m.parameters()]
    x, y = samples()
    with torch.no_grad():
        walker = Walker(layers, x[None], y[None], deep=True)
        first = [u.clone() for u in walker.walk(2, RATE).updates]
        walker.walk(16, RATE)
        walker.frozen()
        again = walker.walk(2, RATE).updates
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    after = [p for m in layers for p in m.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_small_batches_of_single_precision_data_are_walked_in_double() -> None:
    layers = perceptron(WIDTHS["two"], torch.float32)
    exact = perceptron(WIDTHS["two"])
    for single, double in zip(layers, exact, strict=True):
        double.load_state_dict(single.state_dict())
    x, y = samples(torch.float32)
    for size in (1, 4, passes.SMALL, passes.SMALL + 1):
        small = size <= passes.SMALL
        plain = autograd(exact, size, drawn=torch.float32)
        for mine, theirs in zip(walk(layers, size), plain, strict=True):
            assert mine.dtype == (torch.float64 if small else torch.float32)
            error = float((mine - theirs).norm() / theirs.norm())
            assert error < (1e-10 if small else 1e-4)
    with torch.no_grad():  # what is measured on them is single again
        sums = Sums(Walker(layers, x[None], y[None], deep=False))
        assert {g.dtype for size in (1, 35) for *_, g in sums.of(size, RATE)} == {torch.float32}


def test_without_the_compiler_products_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "NUMBA", False)
    monkeypatch.setitem(__import__("sys").modules, "batchlab.engine.kernels", None)
    layers = perceptron(WIDTHS["two"])
    for mine, theirs in zip(walk(layers, 2), autograd(layers, 2), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("m", "k", "n"), [(1, 1, 1), (3, 200, 100), (64, 64, 64), (100, 8, 130), (5, 0, 70)]
)
@pytest.mark.parametrize("replicas", [1, 2])
def test_products(m: int, k: int, n: int, replicas: int) -> None:
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(replicas, k, m, generator=g).mT, torch.randn(replicas, k, n, generator=g)
    c = torch.randn(replicas, m, n, generator=g)
    exact = a.double() @ b.double()
    torch.testing.assert_close(product(a, b).double(), exact, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        product(a, b.mT.contiguous().mT).double(), exact, rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(
        add_product(c.clone(), a, b).double(), c.double() + exact, rtol=1e-4, atol=1e-4
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("size", [1, 7, 64])
def test_on_a_gpu(size: int) -> None:
    layers = perceptron(WIDTHS["two"])
    x, y = samples()
    theirs = autograd(layers, size)
    moved = [layer.cuda() for layer in layers]
    with torch.no_grad():
        walker = Walker(moved, x.cuda().expand(2, *x.shape), y.cuda().expand(2, -1), deep=True)
        done = walker.walk(size, RATE)
        for k, gradient in enumerate(theirs):
            mine = done.sum(k, slice(None))[1].cpu() / -RATE
            torch.testing.assert_close(mine, gradient, rtol=1e-9, atol=1e-12)
