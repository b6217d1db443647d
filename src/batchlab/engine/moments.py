"""The moments at fixed weights from which first-order theory predicts a pass of gradient trials.

Sample i's loss has the gradient g_i and the Hessian H_i over all parameters; g and H are their
means over the N training samples, e_i = g_i - g and Sigma = E e_i e_i'. P selects the last layer's
weight matrix. `analysis.first_order` has the theory and says what each moment is; here they are
estimated from one draw of samples.

The last layer's gradient of a sample is d_i h_i', so along a direction v of the parameters

    P H_i v = d'_i h_i' + d_i h'_i'        d', h' the derivatives along v, in forward mode

and no inner product needs a sample's gradient itself: <d_i h_i', A> = d_i' A h_i.

Shapes: N training samples, M samples (of the draw, or of a part of it), C of a chunk, I inputs and
O outputs of a layer.
"""

from collections.abc import Iterator, Sequence
from math import inf, sqrt
from typing import NamedTuple, Self

import torch

from batchlab.engine import mlp
from batchlab.engine.products import product

GRAM_ROWS = 512  # rows at once of the draw's M by M inner products

Direction = list[tuple[torch.Tensor, torch.Tensor]]  # weight (O, I) and bias (O) of every layer


def full_gradient(
    weights: Sequence[torch.Tensor],
    biases: Sequence[torch.Tensor],
    x_NI: torch.Tensor,
    y_N: torch.Tensor,
    chunk: int = 4096,
) -> Direction:
    """The gradient of the mean loss over N samples: weight (O, I) and bias (O) of every layer.

    `weights` and `biases` stand from the first layer to the last and have the same shapes; y holds
    class indices. `chunk` samples are in memory at once.
    """
    total = [
        (torch.zeros_like(w), torch.zeros_like(b)) for w, b in zip(weights, biases, strict=True)
    ]
    for x, y in zip(x_NI.split(chunk), y_N.split(chunk), strict=True):
        share = x.new_full((len(x),), 1 / len(x_NI))
        part = _Samples.at(weights, biases, x, y).combination(share)
        total = [(w + p, b + q) for (w, b), (p, q) in zip(total, part, strict=True)]
    return total


def moments(
    weights: Sequence[torch.Tensor],
    biases: Sequence[torch.Tensor],
    x_MI: torch.Tensor,
    y_M: torch.Tensor,
    gradient: Direction,
    generator: torch.Generator,
    probes: int = 4,
    population: float = inf,
) -> dict[str, float]:
    """The fields of `analysis.first_order.Moments`, from a draw of M samples without replacement.

    `gradient` is `full_gradient` over all N = `population` samples. Means over samples and over
    pairs of samples are unbiased, and exact where the draw is all N: two independent picks of the
    N are the same sample one time in N. What has H and Sigma in it comes from the combinations

        v = sum_i xi_i e_i / sqrt(M),  xi_i = +-1,  so that E v v' = Sigma

    of one random half of the draw, with H from the other half; the halves change places, and this
    is done `probes` times. It is unbiased but for terms of order 1/N; its error falls with `probes`
    (four give tr P H Sigma P of digits to 16%), so average over draws.

    `generator` is a CPU generator. Raises `ValueError` for fewer than four samples.
    """
    if len(x_MI) < 4:
        raise ValueError(f"moments need four samples, not {len(x_MI)}")
    samples = _Samples.at(weights, biases, x_MI, y_M)
    pick = _Picks(len(x_MI), population)
    g_OI = gradient[-1][0]
    last, slope = samples.last, samples.derivative(gradient)
    signal = _total(g_OI * g_OI)
    along = last.dot(g_OI) - signal  # <g, P e_i>
    square = last.dot_product(last) - 2 * along - signal  # |P e_i|^2
    curved = last.derivative_dot(slope, g_OI)  # <g, P H_i g>
    sloped = last.dot_derivative(slope) - curved  # <P e_i, P H_i g>
    told: dict[str, torch.Tensor] = {}
    for rows, gram, cross in _gram(last, slope, along, curved, signal):
        for name, pairs, same in (
            ("noise_square", gram * gram, square * square),
            ("curvature_along", along[rows, None] * cross, along * sloped),
            ("mixed_square", gram * cross, square * sloped),
        ):
            part = pick.mean(_total(pairs), _total(same[rows]))
            told[name] = told[name] + part if name in told else part
    halves = _over_halves(samples, gradient, along, generator, probes, population)
    found = {
        "signal": signal,
        "noise": square.mean(),
        "curvature": curved.mean(),
        "noise_curvature": halves["noise_curvature"],
        "noise_slope": sloped.mean(),
        "pull": samples.pull(g_OI).mean() - curved.mean(),
        "noise_along": along.square().mean(),
        "noise_square": told["noise_square"],
        "skew": (along * square).mean(),
        "fourth": square.square().mean(),
        "curvature_along": told["curvature_along"],
        "mixed_along": halves["mixed_along"] + (along * curved).mean(),
        "mixed_square": halves["mixed_square"] + told["mixed_square"],
    }
    return {name: float(value) for name, value in found.items()}


def _total(values: torch.Tensor) -> torch.Tensor:
    return values.sum(dtype=torch.float64)


def _product(a_MK: torch.Tensor, b_KN: torch.Tensor) -> torch.Tensor:
    return product(a_MK.unsqueeze(0), b_KN.unsqueeze(0))[0]


def _square(rows_MI: torch.Tensor) -> torch.Tensor:
    return rows_MI.square().sum(1, dtype=torch.float64)


class _Picks(NamedTuple):
    """Means over two independent picks of the population, from a draw of it."""

    samples: int
    population: float

    def mean(self, pairs: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
        """`pairs` is a sum over all ordered pairs of the draw, `same` over each with itself."""
        different = (pairs - same) / (self.samples * (self.samples - 1))
        return different * (1 - 1 / self.population) + same / (self.samples * self.population)


class _Last(NamedTuple):
    """The last layer's side of M samples: d_i (M, O), h_i (M, I), or derivatives of both.

    What it returns is per sample, in float64 (M), but for `mean_derivative`.
    """

    d: torch.Tensor
    h: torch.Tensor

    def dot(self, a_OI: torch.Tensor) -> torch.Tensor:
        """<d h', a>."""
        return (self.d @ a_OI * self.h).sum(1, dtype=torch.float64)

    def dot_product(self, other: "_Last") -> torch.Tensor:
        """<d h', D H'> with D and H of the other, sample by sample."""
        d = (self.d * other.d).sum(1, dtype=torch.float64)
        return d * (self.h * other.h).sum(1, dtype=torch.float64)

    def derivative_dot(self, dot: "_Last", a_OI: torch.Tensor) -> torch.Tensor:
        """The derivative of <d h', a>, where `dot` holds those of d and of h."""
        return _Last(dot.d, self.h).dot(a_OI) + _Last(self.d, dot.h).dot(a_OI)

    def dot_derivative(self, dot: "_Last") -> torch.Tensor:
        """The same with a fixed at each sample's own d h'."""
        return self.dot_product(_Last(dot.d, self.h)) + self.dot_product(_Last(self.d, dot.h))

    def mean_derivative(self, dot: "_Last") -> torch.Tensor:
        """The mean over samples of the derivative of d h' (O, I)."""
        return (dot.d.mT @ self.h + self.d.mT @ dot.h) / len(self.d)


class _Samples:
    """Samples at fixed weights: sums of their gradients, and derivatives along directions.

    For every layer d (M, O) and h (M, I) of each sample's own gradient d h', the bias's being d.
    """

    def __init__(
        self,
        weights: Sequence[torch.Tensor],
        d: Sequence[torch.Tensor],
        h: Sequence[torch.Tensor],
        y_M: torch.Tensor,
    ) -> None:
        self._weights, self._d, self._h, self._y = weights, d, h, y_M
        self.last = _Last(d[-1], h[-1])

    @classmethod
    def at(
        cls,
        weights: Sequence[torch.Tensor],
        biases: Sequence[torch.Tensor],
        x_MI: torch.Tensor,
        y_M: torch.Tensor,
    ) -> Self:
        """By one backward pass over all of them."""
        one = [w[None] for w in weights], [b[None] for b in biases]
        found = [(d[0] * len(y_M), h[0]) for _, d, h in mlp.backward(*one, x_MI[None], y_M[None])]
        d, h = zip(*reversed(found), strict=True)
        return cls(weights, d, h, y_M)

    def rows(self, rows: torch.Tensor) -> "_Samples":
        """Some of the samples."""
        d, h = [d[rows] for d in self._d], [h[rows] for h in self._h]
        return _Samples(self._weights, d, h, self._y[rows])

    def combination(self, factors_M: torch.Tensor) -> Direction:
        """sum_i factors_i g_i over all parameters."""
        shares = [d * factors_M[:, None] for d in self._d]
        return [(_product(d.mT, h), d.sum(0)) for d, h in zip(shares, self._h, strict=True)]

    def derivative(self, direction: Direction) -> _Last:
        """d and h of the last layer, derived along a direction of all parameters."""
        h_dot = None  # the data do not move
        for index, (v_OI, u_O) in enumerate(direction):
            z_dot = _product(self._h[index], v_OI.mT).add_(u_O)
            if h_dot is not None:
                z_dot += _product(h_dot, self._weights[index].mT)
            if index + 1 < len(direction):
                h_dot = z_dot.mul_(self._h[index + 1] > 0)
        if h_dot is None:
            h_dot = torch.zeros_like(self._h[0])
        return _Last(self._softmax_derivative(z_dot), h_dot)

    def pull(self, v_OI: torch.Tensor) -> torch.Tensor:
        """<g_i, H_i v> (M) for v of the last weight matrix: half the derivative of |g_i|^2.

        Nothing below the last layer's output moves but the gradients that come down from it.
        """
        d_dot = self._softmax_derivative(self._h[-1] @ v_OI.mT)
        total = torch.zeros_like(d_dot[:, 0], dtype=torch.float64)
        for index in range(len(self._d) - 1, -1, -1):
            d, h = self._d[index], self._h[index]
            total += (d * d_dot).sum(1, dtype=torch.float64) * (_square(h) + 1)
            if index:
                below = d_dot @ self._weights[index]
                if index == len(self._d) - 1:
                    below += d @ v_OI
                d_dot = below * (h > 0)
        return total

    def _softmax_derivative(self, z_dot_MO: torch.Tensor) -> torch.Tensor:
        """The derivative of the last d = softmax(z) - onehot(y) where z has `z_dot`."""
        p = self._d[-1].scatter_add(1, self._y[:, None], torch.ones_like(self._d[-1][:, :1]))
        return p * (z_dot_MO - (p * z_dot_MO).sum(1, keepdim=True))


def _gram(
    last: _Last, slope: _Last, along: torch.Tensor, curved: torch.Tensor, signal: torch.Tensor
) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
    """Rows i of <P e_i, P e_j> and of <P e_i, P H_j g>, over all j (C, M)."""
    for begin in range(0, len(along), GRAM_ROWS):
        rows = slice(begin, begin + GRAM_ROWS)
        d, h = last.d[rows] @ last.d.mT, last.h[rows] @ last.h.mT
        gram = d * h - along[rows, None] - along - signal
        cross = last.d[rows] @ slope.d.mT * h + d * (last.h[rows] @ slope.h.mT) - curved
        yield rows, gram, cross


def _over_halves(
    samples: _Samples,
    gradient: Direction,
    along_M: torch.Tensor,
    generator: torch.Generator,
    probes: int,
    population: float,
) -> dict[str, torch.Tensor]:
    """tr P H Sigma P, g' P H Sigma P g and tr Sigma_P P H Sigma P, averaged over halves."""
    g_OI, count = gradient[-1][0], len(along_M)
    found: dict[str, list[torch.Tensor]] = {
        "noise_curvature": [],
        "mixed_along": [],
        "mixed_square": [],
    }

    def centred(rows: torch.Tensor, factors: torch.Tensor) -> Direction:
        """sum_i factors_i e_i."""
        factors = factors.to(g_OI)
        combined, total = samples.rows(rows).combination(factors), factors.sum()
        return [
            (w - total * p, b - total * q)
            for (w, b), (p, q) in zip(combined, gradient, strict=True)
        ]

    for _ in range(probes):
        order = torch.randperm(count, generator=generator).to(g_OI.device)
        signs = (2.0 * torch.randint(2, (count,), generator=generator) - 1).to(g_OI.device)
        here, there = order[: count // 2], order[count // 2 :]
        for one, other in ((here, there), (there, here)):
            half = samples.rows(other)
            part = half.last
            v = centred(one, signs[one] / sqrt(len(one)))
            v_OI, slope = v[-1][0], half.derivative(v)
            curved_OI = part.mean_derivative(slope)  # P H v
            found["noise_curvature"].append(_total(v_OI * curved_OI))
            # v' Sigma_P P H v: the sample in Sigma_P must not be the one in H
            weight = part.dot(v_OI) - _total(g_OI * v_OI)
            pairs = weight * (part.dot(curved_OI) - _total(g_OI * curved_OI)) * len(other)
            same = weight * (part.dot_derivative(slope) - part.derivative_dot(slope, g_OI))
            pick = _Picks(len(other), population)
            found["mixed_square"].append(pick.mean(pairs.sum(), same.sum()))
            slope = half.derivative(centred(one, along_M[one] / len(one)))
            found["mixed_along"].append(part.derivative_dot(slope, g_OI).mean())
    return {name: torch.stack(values).mean() for name, values in found.items()}
