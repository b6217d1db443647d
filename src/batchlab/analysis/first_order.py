"""What a pass of gradient trials adds up to, to first order in the learning rate.

M of N samples in random order, K = M / B steps at batch size B. The k-th step has the gradient g_k
of its batch's mean loss over all parameters, which then step by -rate g_k; P selects one layer's
weight matrix and S = sum_k P g_k. At the starting weights let g and H be the gradient and Hessian
of the mean loss over all N samples, H_i a sample's Hessian and e_i the deviation of its gradient
from g, Sigma = E e_i e_i', Sigma_P = P Sigma P, C = E (P H_i g)(P e_i)', T = P H Sigma P + C and
q = E H_i e_i. Then, with f = (N - M) / (N - 1),

    E S    = K [P g - rate (K-1)/2 (P H g - P q / N)]
    Cov S  = K/B f [Sigma_P - rate (K-1)/2 (T + T')]
    E|S|^2 = K^2 |Pg|^2 + K/B f tr Sigma_P
             - rate K (K-1) [K g'PHg + (f tr T - M/N g'Pq) / B]

Where it comes from: g_k = P (mean gradient - rate H_k sum_(j<k) g_j) of the k-th batch. Summed over
the K (K-1) / 2 pairs j < k, the noise of an early batch comes back through H in every later step
(P H Sigma P), and a late batch's own noise goes with its own H_k along the descent that came before
(C, whose trace is g.grad(tr Sigma_P) / 2). q = grad(tr Sigma) / 2 is there because a sample that
was passed early is not there to be passed late; it is gone for N = inf.
"""

from math import inf, nan, sqrt
from typing import NamedTuple


class Moments(NamedTuple):
    """Moments at the starting weights, of samples' gradients of their own loss."""

    signal: float  # |Pg|^2
    noise: float  # tr Sigma_P
    curvature: float  # g'PHg
    noise_curvature: float  # tr P H Sigma P
    noise_slope: float  # tr C
    pull: float  # g'Pq
    # from here on for the spread alone
    noise_along: float  # g' Sigma_P g
    noise_square: float  # tr Sigma_P^2
    skew: float  # E g'Pe |Pe|^2
    fourth: float  # E |Pe|^4
    curvature_along: float  # g' Sigma_P P H g
    mixed_along: float  # g'Tg
    mixed_square: float  # tr Sigma_P T


class Prediction(NamedTuple):
    """Of the summed gradient's norm: E|S|^2, E|S| and the standard deviation of |S|."""

    mean_square: float
    mean: float
    std: float


def predict(
    moments: Moments, batch_size: int, samples: int, rate: float, population: float = inf
) -> Prediction:
    """Mean and spread of |S| in the convention `mean-stepping`; `sum-stepping` is B times it.

    `samples` of `population` (inf: drawn with replacement) make K = samples / batch_size steps,
    a real number where it does not divide. Rate 0 gives `mean-frozen`, whose E|S|^2 is exact.
    All three are nan where the first-order E|S|^2 is not positive; mean and standard deviation
    also where the variance is negative or not small. There the expansion has no meaning.
    Raises `ValueError` for sizes that no pass has.
    """
    if not 1 <= batch_size <= samples <= population:
        raise ValueError(f"no pass of {samples} of {population} samples, {batch_size} a batch")
    m, b, k, f = moments, batch_size, samples / batch_size, _remaining(samples, population)
    noise_trend = f * (m.noise_curvature + m.noise_slope) - samples / population * m.pull
    square = k * k * m.signal + k / b * f * m.noise
    square -= rate * k * (k - 1) * (k * m.curvature + noise_trend / b)
    if not square > 0:
        return Prediction(nan, nan, nan)

    normal = 4 * k**3 / b * f * m.noise_along + 2 * (k / b * f) ** 2 * m.noise_square
    slope = 4 * k**3 / b * f * (m.curvature_along + m.mixed_along)
    slope += 4 * (k / b * f) ** 2 * m.mixed_square
    # `normal - rate (k-1) slope` is 4 m' Cov m + 2 tr Cov^2, the variance of |S|^2 for a normal S
    # of mean m. But the tails of samples' gradients reach far into sums of hundreds, so at rate 0
    # the variance is taken exactly; and as the slope of the tails' part would need H e_i of every
    # sample, all of it is taken to fall by the factor by which the normal part falls.
    variance = frozen_variance(m, samples, population) / b**4
    variance *= 1 - rate * (k - 1) * slope / normal if normal else 1
    if not 0 <= variance <= square * square:
        return Prediction(square, nan, nan)
    # |S|^2 as a gamma variable of this mean and variance (Satterthwaite's approximation), whose
    # root has this variance to second order.
    std = sqrt(variance / (4 * square) * (1 - variance / (8 * square * square)))
    return Prediction(square, sqrt(square - std * std), std)


def frozen_variance(moments: Moments, samples: int, population: float = inf) -> float:
    """The variance of |sum_i P g_i|^2 over `samples` of `population`, exactly.

    |M Pg + E|^2 with E the sum of M deviations e. By the number of distinct samples in a product
    of four e's, each with its chance to be drawn, and as all N e's sum to nothing:

        Var|E|^2 = M E|e|^4 (1 - 7r + 12rs - 6rst)
                   + M (M-1) N/(N-1) (2 tr Sigma_P^2 + (tr Sigma_P)^2) (1 - 2s + st) - (E|E|^2)^2

    with r, s, t = (M-i)/(N-i) for i = 1, 2, 3; likewise Cov(g'E, |E|^2), of three e's.
    """
    m, n, f = moments, samples, _remaining(samples, population)
    r, s, t = ((n - i) / max(population - i, 1) for i in (1, 2, 3))
    twos = n * (n - 1) * (1 + 1 / max(population - 1, 1)) * (1 - 2 * s + s * t)
    square = n * m.fourth * (1 - 7 * r + 12 * r * s - 6 * r * s * t)
    square += twos * (2 * m.noise_square + m.noise**2) - (n * f * m.noise) ** 2
    third = n * (1 - 3 * r + 2 * r * s) * m.skew
    return 4 * n * n * n * f * m.noise_along + 4 * n * third + square


def _remaining(samples: int, population: float) -> float:
    """(N - M) / (N - 1): the part of the noise that drawing without replacement leaves."""
    return 1 - (samples - 1) / max(population - 1, 1)
