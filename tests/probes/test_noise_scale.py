"""Parts of a batch: unbiased whatever their sizes and weights, and gathered without loss."""

from itertools import combinations

import numpy as np
import pytest
import torch

from batchlab.probes import blocks
from batchlab.probes.noise_scale import NoiseStatistics
from batchlab.probes.parts import Parts, parts, unbiased
from batchlab.record import ALL
from batchlab.spec import UserError

D = 6


def examples(count: int, seed: int = 0) -> torch.Tensor:
    """Gradients (count, D), mean 0.5 and standard deviations 1 to 2."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.linspace(1, 2, D, dtype=torch.float64)
    return 0.5 + spread * torch.randn(count, D, generator=generator, dtype=torch.float64)


TAU, SQUARE = float(torch.linspace(1, 2, D).square().sum()), 0.25 * D


def one(g_ND: torch.Tensor, sizes: list[int], weights: list[float] | None = None) -> Parts:
    """The parts of one batch of a model with one parameter."""
    means = torch.stack([c.mean(0) for c in g_ND.split(sizes)])
    share = torch.tensor(weights or sizes, dtype=torch.float64)
    whole = (share / share.sum()) @ means
    return parts(means.norm(dim=1)[:, None], whole.norm()[None], sizes, weights)


def told(step: Parts, population: int | None = None) -> tuple[float, float]:
    statistics = NoiseStatistics(["w"], population)
    statistics.update(step)
    series = statistics.compute()["w"]
    return float(series.trace_S[0]), float(series.square_S[0])


def test_single_examples_are_the_sample_covariance() -> None:
    g = examples(9)
    tau, square = told(one(g, [1] * 9))
    assert tau == pytest.approx(float(torch.cov(g.T).trace()), rel=1e-12)
    inner = [float(g[i] @ g[j]) for i, j in combinations(range(9), 2)]
    assert square == pytest.approx(sum(inner) / len(inner), rel=1e-11)


def test_two_halves_are_the_estimator_of_mccandlish() -> None:
    g = examples(8)
    small = (float(g[:4].mean(0).norm() ** 2) + float(g[4:].mean(0).norm() ** 2)) / 2
    big = float(g.mean(0).norm() ** 2)
    tau, square = told(one(g, [4, 4]))
    assert tau == pytest.approx((small - big) / (1 / 4 - 1 / 8), rel=1e-12)
    assert square == pytest.approx((8 * big - 4 * small) / (8 - 4), rel=1e-11)


@pytest.mark.parametrize(
    ("sizes", "weights"),
    [
        ([4, 4, 4], None),
        ([5, 5, 2], None),
        ([5, 5, 2], [1.0, 1, 1]),  # the mean of micro-batch means
        ([1, 11], [1.0, 1]),
        ([1] * 12, None),
    ],
)
def test_unbiased_for_any_sizes_and_weights(sizes: list[int], weights: list[float] | None) -> None:
    draws = 3000
    g = examples(12 * draws, seed=1).view(draws, 12, D)
    means = torch.stack([c.mean(1) for c in g.split(sizes, dim=1)])  # (K, draws, D)
    share = torch.tensor(weights or sizes, dtype=torch.float64)
    whole = torch.einsum("k,kpd->pd", share / share.sum(), means)
    step = parts(means.norm(dim=2), whole.norm(dim=1), sizes, weights)  # draws as parameters
    own_P, whole_P = (step.norms_2P**2).numpy()
    for estimate, truth in zip(
        unbiased(own_P, whole_P, step.small, step.big), (TAU, SQUARE), strict=True
    ):
        assert abs(estimate.mean() - truth) < 4 * estimate.std() / np.sqrt(draws)
    if weights:  # the negative control: weights that were not told of
        step = parts(means.norm(dim=2), whole.norm(dim=1), sizes)
        own_P, whole_P = (step.norms_2P**2).numpy()
        wrong = unbiased(own_P, whole_P, step.small, step.big)[1]
        assert abs(wrong.mean() - SQUARE) > 6 * wrong.std() / np.sqrt(draws)


def test_without_replacement_every_draw_of_a_small_population() -> None:
    """The mean over all 126 halves-of-4 batches is exactly the population's own."""
    population = examples(9)
    batches = list(combinations(range(9), 4))
    estimates = np.array([told(one(population[list(b)], [1] * 4), 9) for b in batches])
    tau = float(torch.cov(population.T).trace())
    square = float(population.mean(0).norm() ** 2)
    assert estimates.mean(axis=0) == pytest.approx([tau, square], rel=1e-11)
    without = np.array([told(one(population[list(b)], [1] * 4)) for b in batches])
    assert without[:, 1].mean() == pytest.approx(square - tau / 9, rel=1e-10)


def steps(count: int) -> list[Parts]:
    told = []
    for k in range(count):
        g = examples(4, seed=k)
        own, whole = g.norm(dim=1)[:, None], g.mean(0).norm()[None]
        told.append(parts(own.expand(-1, 2), whole.expand(2), [1] * 4))
    return told


def test_merge_blocks_and_total(monkeypatch: pytest.MonkeyPatch) -> None:
    together = NoiseStatistics(["a", "b"])
    for step in steps(7):
        together.update(step)
    monkeypatch.setattr(blocks, "BLOCK", 2)
    first, second = NoiseStatistics(["a", "b"]), NoiseStatistics(["a", "b"])
    for k, step in enumerate(steps(7)):
        (first if k < 3 else second).update(step)
    assert len(first._norms._pending) == 1
    first.merge(second)
    series = first.compute()
    for name, expected in together.compute().items():
        for ours, theirs in zip(series[name], expected, strict=True):
            assert np.array_equal(ours, theirs)
    assert series[ALL].trace_S == pytest.approx(series["a"].trace_S + series["b"].trace_S)
    assert series[ALL].examples_S.tolist() == [4.0] * 7


def test_a_step_that_overflowed_is_left_out_and_counted() -> None:
    statistics = NoiseStatistics(["a", "b"])
    good, bad = steps(2)
    bad.norms_2P[0, 1] = torch.inf
    for step in (good, bad, good):
        statistics.update(step)
    assert len(statistics.compute()["a"].trace_S) == 2
    assert statistics.skipped == 1


def test_users_errors() -> None:
    g = torch.ones(2, 1)
    with pytest.raises(UserError, match="two parts or more"):
        parts(g[:1], g[0], [8])
    with pytest.raises(UserError, match="2 sizes, not 3"):
        parts(g, g[0], [8, 8, 8])
    with pytest.raises(UserError, match="needs an example, not 0"):
        parts(g, g[0], [8, 0])
    with pytest.raises(UserError, match="norms of 3 parameters"):
        NoiseStatistics(["a", "b", "c"]).update(parts(g, g[0], [1, 1]))
    with pytest.raises(UserError, match="same parameters"):
        NoiseStatistics(["a"]).merge(NoiseStatistics(["b"]))
    with pytest.raises(ValueError, match="no step"):
        NoiseStatistics(["a"]).compute()


def test_the_last_steps_are_read_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 2)
    statistics = NoiseStatistics(["a", "b"])
    for step in steps(7):
        statistics.update(step)
    whole = statistics.compute()
    assert statistics.skipped == 0
    statistics._norms._there[0][:] = np.nan
    assert statistics.skipped == 0  # counted once
    for last in (1, 3, 5):
        for name, told in statistics.compute(last).items():
            for ours, theirs in zip(told, whole[name], strict=True):
                assert np.array_equal(ours, theirs[-last:])
    assert len(statistics.compute()["a"].trace_S) == 5
    assert len(statistics.compute(100)["a"].trace_S) == 5


def test_skipped_steps_of_both_that_merge() -> None:
    first, second = NoiseStatistics(["a", "b"]), NoiseStatistics(["a", "b"])
    for statistics in (first, second):
        good, bad = steps(2)
        bad.norms_2P[0, 1] = torch.nan
        statistics.update(good)
        statistics.update(bad)
    assert second.skipped == 1
    first.merge(second)
    assert first.skipped == first.skipped == 2
