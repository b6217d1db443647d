"""First-order theory of gradient trials against passes of softmax regression on real digits.

Shapes: R passes side by side, N samples of the population, M of a pass, I inputs, O classes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf, sqrt

import pytest
import torch
from torch.nn import functional as F

from batchlab.analysis.first_order import Moments, Prediction, predict
from batchlab.engine.moments import Samples, full_gradient, moments
from batchlab.workloads.digits import Digits

SAMPLES, CLASSES = 1280, 10
SIDE_BY_SIDE = 500


@dataclass(frozen=True)
class Case:
    """Passes of `drawn` samples at `size` a batch, `count` of them."""

    population: float
    drawn: int
    size: int
    count: int


WITH = [Case(inf, 32, 2, 20_000), Case(inf, 64, 16, 12_000), Case(inf, 512, 64, 2000)]
WITHOUT = [Case(SAMPLES, 64, 8, 12_000), Case(SAMPLES, 640, 80, 2000)]
ALL = Case(SAMPLES, SAMPLES, 160, 300)  # nothing but the order is left to chance


class Regression:
    """Softmax regression on digits, after some training; its moments over all samples."""

    def __init__(self) -> None:
        data, g = Digits().load(None), torch.Generator().manual_seed(0)
        self.x, self.y = data.train_x[:SAMPLES].double(), data.train_y[:SAMPLES]
        self.onehot = F.one_hot(self.y, CLASSES).double()
        shape = CLASSES, self.x.shape[1]
        self.w = 0.1 * torch.randn(shape, generator=g, dtype=torch.float64)
        self.b = torch.zeros(CLASSES, dtype=torch.float64)
        for rows in torch.randperm(SAMPLES, generator=g)[:640].split(32):
            ((w, b),) = full_gradient([self.w], [self.b], self.x[rows], self.y[rows])
            self.w, self.b = self.w - 0.05 * w, self.b - 0.05 * b
        net = [self.w], [self.b], self.x, self.y
        gradient = full_gradient(*net)
        self.moments = Moments(**moments(Samples.at(*net), gradient, g, 1000, population=SAMPLES))

    def squares(self, rows_RM: torch.Tensor, size: int, rate: float) -> torch.Tensor:
        """|S|^2 of every pass (R), as a reader would write it."""
        w = self.w.expand(len(rows_RM), *self.w.shape)
        b = self.b.expand(len(rows_RM), 1, CLASSES)
        total = torch.zeros_like(w)
        for rows in rows_RM.split(size, dim=1):
            x = self.x[rows]
            d = (torch.baddbmm(b, x, w.mT).softmax(-1) - self.onehot[rows]) / rows.shape[1]
            gradient = d.mT @ x
            total += gradient
            w, b = w - rate * gradient, b - rate * d.sum(1, keepdim=True)
        return total.square().sum((1, 2))

    def predict(self, case: Case, rate: float, **other: float) -> Prediction:
        m = self.moments._replace(**other)
        return predict(m, case.size, case.drawn, rate, case.population)

    def rate(self, case: Case, change: float) -> float:
        """The learning rate at which the first-order term takes this share of E|S|^2."""
        zero, some = (self.predict(case, rate).mean_square for rate in (0.0, 1e-6))
        return 1e-6 * change * zero / (zero - some)

    def draws(self, case: Case) -> Iterator[torch.Tensor]:
        """The samples of some passes side by side; the same at every call."""
        g = torch.Generator().manual_seed(1)
        for begin in range(0, case.count, SIDE_BY_SIDE):
            shape = min(SIDE_BY_SIDE, case.count - begin), case.drawn
            if case.population == inf:
                yield torch.randint(SAMPLES, shape, generator=g)
            else:
                order = torch.rand(shape[0], SAMPLES, generator=g).argsort(dim=1)
                yield order[:, : case.drawn]

    def simulate(self, case: Case, rate: float) -> torch.Tensor:
        """|S|^2 of every pass of the case."""
        return torch.cat([self.squares(rows, case.size, rate) for rows in self.draws(case)])

    def trend(self, case: Case, rate: float, **other: float) -> float:
        """The predicted change of E|S|^2 from no stepping to this rate."""
        zero, some = (self.predict(case, r, **other).mean_square for r in (0.0, rate))
        return some - zero


@pytest.fixture(scope="module")
def regression() -> Regression:
    return Regression()


@pytest.mark.parametrize("case", [*WITH, *WITHOUT, ALL], ids=str)
def test_mean_square_and_mean_hold_to_2_percent(regression: Regression, case: Case) -> None:
    rate = regression.rate(case, 0.09)  # leaves a second order of some 1%
    squares, found = regression.simulate(case, rate), regression.predict(case, rate)
    assert found.mean_square == pytest.approx(float(squares.mean()), rel=0.02)
    if case is not ALL:
        assert found.mean == pytest.approx(float(squares.sqrt().mean()), rel=0.02)
    frozen = regression.predict(case, 0.0)
    assert abs(frozen.mean_square / float(squares.mean()) - 1) > 0.06  # the negative control


@pytest.mark.parametrize("case", WITH + WITHOUT, ids=str)
def test_spread_holds_to_6_percent(regression: Regression, case: Case) -> None:
    rate = regression.rate(case, 0.04)  # the variance falls some times faster than the mean
    std, found = float(regression.simulate(case, rate).sqrt().std()), regression.predict(case, rate)
    assert found.std == pytest.approx(std, rel=0.06)
    assert regression.predict(case, 0.0).std / std > 1.08  # the negative control


@pytest.mark.parametrize("case", [*WITH, *WITHOUT, ALL], ids=str)
def test_slope_in_the_rate_holds_to_2_percent(regression: Regression, case: Case) -> None:
    """From the same draws at a rate and at minus it, which leaves no second order.

    Negative controls: the descent's effect on the noise left out; and, where a pass takes all
    samples, that none of them comes twice.
    """
    rate = regression.rate(case, 0.02)
    down, up = regression.simulate(case, rate), regression.simulate(case, -rate)
    half = (down - up) / 2
    change, error = float(half.mean()), float(half.std()) / sqrt(len(half))
    assert error < 0.007 * abs(change)
    assert regression.trend(case, rate) == pytest.approx(change, rel=0.02)
    without = {"pull": 0.0} if case is ALL else {"noise_slope": 0.0}
    miss = abs(regression.trend(case, rate, **without) / change - 1)
    assert miss > 0.015
    assert miss > 3 * abs(regression.trend(case, rate) / change - 1)
