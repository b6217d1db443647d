"""First-order theory's moments against every sample's own gradient and Hessian, by autograd."""

from collections.abc import Callable
from functools import partial
from math import inf

import pytest
import torch
from torch.autograd import functional as autograd
from torch.nn import functional as F

from batchlab.analysis.first_order import Moments
from batchlab.engine import mlp
from batchlab.engine.moments import Direction, Samples, full_gradient, moments

INPUTS, CLASSES, SAMPLES = 3, 3, 9
NETS = [(), (4,), (4, 3)]  # hidden widths; none is softmax regression
OVER_HALVES = {"noise_curvature", "mixed_along", "mixed_square"}


class Toy:
    """A perceptron with every sample's gradient g (N, P) and Hessian H (N, P, P) of its loss."""

    def __init__(self, hidden: tuple[int, ...], dtype: torch.dtype = torch.float64) -> None:
        g = torch.Generator().manual_seed(3)
        sizes = (INPUTS, *hidden, CLASSES)
        shapes = list(zip(sizes[1:], sizes, strict=False))
        self.weights = [torch.randn(o, i, generator=g, dtype=torch.float64) for o, i in shapes]
        self.biases = [0.3 * torch.randn(o, generator=g, dtype=torch.float64) for o, _ in shapes]
        self.x = torch.randn(SAMPLES, INPUTS, generator=g, dtype=torch.float64)
        self.y = torch.randint(CLASSES, (SAMPLES,), generator=g)
        flat = torch.cat([t.flatten() for pair in self._pairs() for t in pair])
        each = [(self.x[i], self.y[i]) for i in range(SAMPLES)]
        losses: list[Callable[[torch.Tensor], torch.Tensor]]
        losses = [partial(self._loss, x=x, y=y) for x, y in each]
        self.g = torch.stack([autograd.jacobian(loss, flat) for loss in losses])
        self.H = torch.stack([autograd.hessian(loss, flat) for loss in losses])
        stop = len(flat) - CLASSES  # the last bias
        self.P = slice(stop - self.weights[-1].numel(), stop)
        self.weights = [w.to(dtype) for w in self.weights]
        self.biases = [b.to(dtype) for b in self.biases]
        self.x = self.x.to(dtype)

    def _pairs(self) -> Direction:
        return list(zip(self.weights, self.biases, strict=True))

    def _loss(self, flat: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        begin, h = 0, x
        for index, (w, b) in enumerate(self._pairs()):
            split = begin + w.numel()
            z = flat[begin:split].view_as(w) @ h + flat[split : split + b.numel()]
            begin, h = split + b.numel(), z.relu()
            if index == len(self.weights) - 1:
                h = z
        return F.cross_entropy(h, y)

    def gradient(self) -> Direction:
        return full_gradient(self.weights, self.biases, self.x, self.y)

    def measured(self, probes: int = 1, seed: int = 0, population: float = SAMPLES) -> Moments:
        g = torch.Generator().manual_seed(seed)
        return Moments(**moments(self.samples(), self.gradient(), g, probes, population))

    def samples(self, rows: slice | torch.Tensor = slice(None)) -> Samples:
        return Samples.at(self.weights, self.biases, self.x[rows], self.y[rows])


def truth(toy: Toy, *, other_sample: bool = False) -> dict[str, float]:
    """Every moment from its definition.

    Over all N; where `other_sample`, what has both H and Sigma in it over different samples only.
    """
    P, e, H = toy.P, toy.g - toy.g.mean(0), toy.H.mean(0)
    g, n = toy.g.mean(0), SAMPLES
    Pg, Pe = g[P], e[:, P]
    slopes = toy.H[:, P] @ g  # P H_i g
    Sigma_P, Sigma = Pe.T @ Pe / n, e.T @ e / n
    C = slopes.T @ Pe / n
    q = (toy.H @ e[..., None])[..., 0].mean(0)
    PHSigma = H[P] @ Sigma[:, P]
    moving = PHSigma
    square = torch.einsum("ij,ji->", Sigma_P, PHSigma)
    if other_sample:
        # i the sample of Sigma, j that of H, k that of Sigma_P: i differs from both, k by N picks
        same = torch.einsum("iab,ib,ic->ac", toy.H[:, P], e, Pe)
        moving = (n * n * PHSigma - same) / (n * (n - 1))
        square = torch.zeros((), dtype=e.dtype)
        for i in range(n):
            rest = [j for j in range(n) if j != i]
            pushed = toy.H[rest][:, P] @ e[i]  # P H_j e_i
            inner = (Pe[rest] @ Pe[i])[:, None] * (Pe[rest] @ pushed.T)  # k, j
            diagonal = inner.diagonal().sum()
            different = (inner.sum() - diagonal) / (n - 1) / (n - 2)
            square += different * (1 - 1 / n) / n + diagonal / (n - 1) / n / n
    found = {
        "signal": Pg @ Pg,
        "noise": Sigma_P.trace(),
        "curvature": Pg @ H[P] @ g,
        "noise_curvature": moving.trace(),
        "noise_slope": C.trace(),
        "pull": Pg @ q[P],
        "noise_along": Pg @ Sigma_P @ Pg,
        "noise_square": (Sigma_P @ Sigma_P).trace(),
        "skew": ((Pe @ Pg) * Pe.square().sum(1)).mean(),
        "fourth": Pe.square().sum(1).square().mean(),
        "curvature_along": Pg @ Sigma_P @ H[P] @ g,
        "mixed_along": Pg @ (moving + C) @ Pg,
        "mixed_square": square + (Sigma_P @ C).trace(),
    }
    return {name: float(value) for name, value in found.items()}


@pytest.mark.parametrize("hidden", NETS)
def test_full_gradient_is_the_mean_of_all(hidden: tuple[int, ...]) -> None:
    toy = Toy(hidden)
    for chunk in (1, 4, 100):
        found = full_gradient(toy.weights, toy.biases, toy.x, toy.y, chunk)
        flat = torch.cat([t.flatten() for pair in found for t in pair])
        torch.testing.assert_close(flat, toy.g.mean(0), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("hidden", NETS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_exact_moments_are_exact_over_all_samples(
    hidden: tuple[int, ...], dtype: torch.dtype
) -> None:
    measured, known = Toy(hidden, dtype).measured()._asdict(), truth(Toy(hidden))
    assert measured.keys() == known.keys()
    for name in known.keys() - OVER_HALVES:
        rel = 1e-9 if dtype == torch.float64 else 1e-3
        assert measured[name] == pytest.approx(known[name], rel=rel, abs=rel / 10), name


@pytest.mark.parametrize("hidden", NETS)
def test_random_moments_are_unbiased(hidden: tuple[int, ...]) -> None:
    """Within 4 standard errors; what other definitions give is further away."""
    toy = Toy(hidden)
    found = torch.tensor([toy.measured(1, seed) for seed in range(800)], dtype=torch.float64)
    mean, error = found.mean(0), found.std(0) / len(found) ** 0.5
    known = truth(toy, other_sample=True)
    wrong = truth(toy)  # the sample of H may be that of Sigma
    apart = 0.0
    for name, m, s in zip(Moments._fields, mean, error, strict=True):
        if name in OVER_HALVES:
            assert abs(m - known[name]) < 4 * s, (name, m, s, known[name])
            assert s < 0.1 * abs(known[name]) + 0.02 * abs(known["noise"])
            apart = max(apart, float(abs(m - wrong[name]) / s))
    assert apart > 8  # the negative control


def halved(toy: Toy, probes: int, seed: int) -> dict[str, float]:
    """What halves of the samples tell, from their definition and the same halves and signs."""
    P, e, generator = toy.P, toy.g - toy.g.mean(0), torch.Generator().manual_seed(seed)
    g, Pg, Pe = toy.g.mean(0), toy.g.mean(0)[toy.P], e[:, toy.P]
    names = "noise_curvature", "mixed_along", "mixed_square"
    told: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    for _ in range(probes):
        order = torch.randperm(SAMPLES, generator=generator)
        signs = 2.0 * torch.randint(2, (SAMPLES,), generator=generator) - 1
        here, there = order[: SAMPLES // 2], order[SAMPLES // 2 :]
        for one, other in ((here, there), (there, here)):
            n = len(other)
            v = signs[one].double() @ e[one] / len(one) ** 0.5
            w = (Pe[one] @ Pg) @ e[one] / len(one)
            pushed = toy.H[other][:, P] @ v  # P H_j v
            told["noise_curvature"].append(v[P] @ pushed.mean(0))
            told["mixed_along"].append(Pg @ (toy.H[other].mean(0) @ w)[P])
            pairs = (Pe[other] @ v[P])[:, None] * (Pe[other] @ pushed.T)
            same = pairs.diagonal().sum()
            different = (pairs.sum() - same) / (n * (n - 1))
            told["mixed_square"].append(different * (1 - 1 / SAMPLES) + same / (n * SAMPLES))
    found = {name: torch.stack(values).mean() for name, values in told.items()}
    slopes = toy.H[:, P] @ g
    found["mixed_along"] += ((Pe @ Pg) * (slopes @ Pg)).mean()
    found["mixed_square"] += ((Pe @ Pe.T) * (Pe @ slopes.T)).mean()
    return {name: float(value) for name, value in found.items()}


@pytest.mark.parametrize("hidden", NETS)
def test_halves_are_what_their_definition_says(hidden: tuple[int, ...]) -> None:
    toy = Toy(hidden)
    for seed in range(3):
        measured = toy.measured(2, seed)._asdict()
        for name, value in halved(toy, 2, seed).items():
            assert measured[name] == pytest.approx(value, rel=1e-10, abs=1e-12), name


def test_inner_products_may_be_given() -> None:
    toy = Toy((4, 3))
    made, g = toy.samples(), torch.Generator()
    one = moments(made, toy.gradient(), g.manual_seed(0))
    net = [w[None] for w in toy.weights], [b[None] for b in toy.biases]
    found = list(mlp.backward(*net, toy.x[None], toy.y[None], scale=1.0))
    d, h = [d[0] for _, d, _ in reversed(found)], [h[0] for *_, h in reversed(found)]
    for given, same in ((made.inner, True), ([k + 1 for k in made.inner], False)):
        samples = Samples(toy.weights, d, h, toy.y, given)
        other = moments(samples, toy.gradient(), g.manual_seed(0))
        assert (other == pytest.approx(one, rel=1e-12)) is same


def test_a_draw_is_unbiased_for_the_population() -> None:
    """Over all draws of 6 of 9; taken for draws from infinitely many, pairs are off."""
    toy = Toy((4,))
    known, gradient = truth(toy), toy.gradient()
    totals = {9.0: torch.zeros(13), inf: torch.zeros(13)}
    draws = torch.combinations(torch.arange(SAMPLES), 6)
    for population in totals:
        for rows in draws:
            g = torch.Generator().manual_seed(0)
            found = moments(toy.samples(rows), gradient, g, 1, population)
            totals[population] += torch.tensor(list(found.values())) / len(draws)
    mean = dict(zip(found, totals[9.0].tolist(), strict=True))
    for name in known.keys() - OVER_HALVES:
        assert mean[name] == pytest.approx(known[name], rel=1e-4, abs=1e-5), name
    where = list(found).index("noise_square")
    assert abs(totals[inf][where] / known["noise_square"] - 1) > 0.05


def test_the_generator_alone_decides() -> None:
    toy = Toy((4,))
    assert toy.measured(2, seed=5) == toy.measured(2, seed=5)
    assert toy.measured(2, seed=5) != toy.measured(2, seed=6)


def test_too_few_samples() -> None:
    toy = Toy(())
    with pytest.raises(ValueError, match="four samples, not 3"):
        moments(toy.samples(slice(3)), toy.gradient(), torch.Generator())
