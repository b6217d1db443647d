"""The moments at fixed weights from which first-order theory predicts a pass of gradient trials.

Sample i's loss has the gradient g_i and the Hessian H_i over all parameters; g and H are their
means over the N training samples, e_i = g_i - g and Sigma = E e_i e_i'. P selects the last layer's
weight matrix. `analysis.first_order` has the theory and says what each moment is; here they are
estimated from one draw of samples.

The last layer's gradient of a sample is d_i h_i', so along a direction v of the parameters

    P H_i v = d'_i h_i' + d_i h'_i'        d', h' the derivatives along v, in forward mode

and no inner product needs a sample's gradient itself: <d_i h_i', A> = d_i' A h_i. Nor does the
direction of a combination sum_i f_i g_i: it changes a layer's output at sample j by sum_i K_ji f_i
d_i, where K_ji = <h_j, h_i> + 1 are the inner products of the layer's inputs, one for its bias.

Shapes: N training samples, M samples (of the draw, or of a part of it), C of a chunk, I inputs and
O outputs of a layer.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from math import inf, sqrt
from typing import NamedTuple, Self

import torch

from batchlab.engine import mlp
from batchlab.engine.products import add_product, product

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
        part = Samples.at(weights, biases, x, y).combination(share)
        total = [(w + p, b + q) for (w, b), (p, q) in zip(total, part, strict=True)]
    return total


def moments(
    samples: "Samples",
    gradient: Direction,
    generator: torch.Generator,
    probes: int = 4,
    population: float = inf,
) -> dict[str, float]:
    """The fields of `analysis.first_order.Moments`, from M samples drawn without replacement.

    `gradient` is `full_gradient` over all N = `population` samples. Means over samples and over
    pairs of samples are unbiased, and exact where the draw is all N: two independent picks of the
    N are the same sample one time in N. What has H and Sigma in it comes from the combinations

        v = sum_i xi_i e_i / sqrt(M),  xi_i = +-1,  so that E v v' = Sigma

    of one random half of the draw, with H from the other half; the halves change places, and this
    is done `probes` times. It is unbiased but for terms of order 1/N; its error falls with `probes`
    (four give tr P H Sigma P of digits to 16%), so average over draws.

    `generator` is a CPU generator. Raises `ValueError` for fewer than four samples.
    """
    count = len(samples.last.d)
    if count < 4:
        raise ValueError(f"moments need four samples, not {count}")
    pick = _Picks(count, population)
    g_OI = gradient[-1][0]
    last, slope = samples.last, samples.derivative(gradient)
    signal = _total(g_OI * g_OI)
    along = last.dot(g_OI) - signal  # <g, P e_i>
    square = last.dot_product(last) - 2 * along - signal  # |P e_i|^2
    curved = last.derivative_dot(slope, g_OI)  # <g, P H_i g>
    sloped = last.dot_derivative(slope) - curved  # <P e_i, P H_i g>
    told: dict[str, torch.Tensor] = {}
    for rows, gram, cross in _gram(samples, slope, along, curved, signal):
        for name, pairs, same in (
            ("noise_square", gram * gram, square * square),
            ("curvature_along", along[rows, None] * cross, along * sloped),
            ("mixed_square", gram * cross, square * sloped),
        ):
            part = pick.mean(_total(pairs), _total(same[rows]))
            told[name] = told[name] + part if name in told else part
    bent = samples.bent(g_OI)
    mixed_MM = along[:, None] * (samples.dots(bent) - curved)  # <g, P e_i> <e_i, H_j P g>
    halves = _over_halves(samples, g_OI, slope, mixed_MM, generator, probes, population)
    found = {
        "signal": signal,
        "noise": square.mean(),
        "curvature": curved.mean(),
        "noise_curvature": halves["noise_curvature"],
        "noise_slope": sloped.mean(),
        "pull": samples.pull(bent).mean() - curved.mean(),
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


class Samples:
    """Samples at fixed weights: sums of their gradients, and derivatives along directions.

    For every layer d (M, O) and h (M, I) of each sample's own gradient d h', the bias's being d.
    """

    def __init__(
        self,
        weights: Sequence[torch.Tensor],
        d: Sequence[torch.Tensor],
        h: Sequence[torch.Tensor],
        y_M: torch.Tensor,
        inner: Sequence[torch.Tensor] | None = None,
    ) -> None:
        """`inner`: every layer's K (M, M), where it is known."""
        self._weights, self._d, self._h, self._y = weights, d, h, y_M
        self.last = _Last(d[-1], h[-1])
        if inner is not None:
            self.inner = inner

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

    @cached_property
    def inner(self) -> Sequence[torch.Tensor]:
        """Every layer's K (M, M)."""
        return [_product(h, h.mT).add_(1.0) for h in self._h]

    def rows(self, rows: torch.Tensor) -> "Samples":
        """Some of the samples."""
        d, h = [d[rows] for d in self._d], [h[rows] for h in self._h]
        return Samples(self._weights, d, h, self._y[rows])

    def shares(self, factors_M: torch.Tensor) -> list[torch.Tensor]:
        """factors_i d_i of every layer."""
        return [d * factors_M[:, None] for d in self._d]

    def combination(self, factors_M: torch.Tensor) -> Direction:
        """sum_i factors_i g_i over all parameters."""
        shares = self.shares(factors_M)
        return [(_product(d.mT, h), d.sum(0)) for d, h in zip(shares, self._h, strict=True)]

    def derivative(self, direction: Direction) -> _Last:
        """d and h of the last layer, derived along a direction of all parameters."""
        pairs = zip(self._h, direction, strict=True)
        return self._derivative(_product(h, v_OI.mT).add_(u_O) for h, (v_OI, u_O) in pairs)

    def derivative_by(self, shares: Sequence[torch.Tensor], inner: Sequence[torch.Tensor]) -> _Last:
        """The same along the combination of other samples' gradients that has these shares.

        `inner`: every layer's K between these samples and those.
        """
        return self._derivative(_product(k, d) for k, d in zip(inner, shares, strict=True))

    def _derivative(self, moved: Iterable[torch.Tensor]) -> _Last:
        """By what each layer's own weights and bias change in its output (M, O)."""
        h_dot = None  # the data do not move
        for index, z_dot in enumerate(moved):
            if h_dot is not None:
                w_IO = self._weights[index].mT
                z_dot = add_product(z_dot[None], h_dot[None], w_IO[None])[0]
            if index + 1 < len(self._h):
                h_dot = z_dot.mul_(self._h[index + 1] > 0)
        if h_dot is None:
            h_dot = torch.zeros_like(self._h[0])
        return _Last(self._softmax_derivative(z_dot), h_dot)

    def bent(self, v_OI: torch.Tensor) -> list[torch.Tensor]:
        """Every layer's d (M, O), derived along v of the last weight matrix: H_i v = d'_i h_i'.

        Nothing below the last layer's output moves but the gradients that come down from it.
        """
        d_dot = self._softmax_derivative(self._h[-1] @ v_OI.mT)
        found = [d_dot]
        for index in range(len(self._d) - 1, 0, -1):
            below = _product(d_dot, self._weights[index])
            if index == len(self._d) - 1:
                below += self._d[index] @ v_OI
            d_dot = below * (self._h[index] > 0)
            found.insert(0, d_dot)
        return found

    def pull(self, bent: Sequence[torch.Tensor]) -> torch.Tensor:
        """<g_i, H_i v> (M): half the derivative of |g_i|^2."""
        pairs = zip(self._d, bent, self._h, strict=True)
        return sum(
            ((d * d_dot).sum(1, dtype=torch.float64) * (_square(h) + 1) for d, d_dot, h in pairs),
            start=torch.zeros_like(self._y, dtype=torch.float64),
        )

    def dots(self, bent: Sequence[torch.Tensor]) -> torch.Tensor:
        """<g_i, H_j v> of all pairs (M, M)."""
        total = torch.zeros_like(self.inner[0])
        for d, d_dot, k in zip(self._d, bent, self.inner, strict=True):
            total.addcmul_(_product(d, d_dot.mT), k)
        return total

    def _softmax_derivative(self, z_dot_MO: torch.Tensor) -> torch.Tensor:
        """The derivative of the last d = softmax(z) - onehot(y) where z has `z_dot`."""
        p = self._d[-1].scatter_add(1, self._y[:, None], torch.ones_like(self._d[-1][:, :1]))
        return p * (z_dot_MO - (p * z_dot_MO).sum(1, keepdim=True))


def _gram(
    samples: Samples,
    slope: _Last,
    along: torch.Tensor,
    curved: torch.Tensor,
    signal: torch.Tensor,
) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
    """Rows i of <P e_i, P e_j> and of <P e_i, P H_j g>, over all j (C, M)."""
    last = samples.last
    for begin in range(0, len(along), GRAM_ROWS):
        rows = slice(begin, begin + GRAM_ROWS)
        d, h = last.d[rows] @ last.d.mT, samples.inner[-1][rows] - 1
        gram = d * h - along[rows, None] - along - signal
        moved = _product(last.h[rows], slope.h.mT)
        cross = last.d[rows] @ slope.d.mT * h + d * moved - curved
        yield rows, gram, cross


def _over_halves(
    samples: Samples,
    g_OI: torch.Tensor,
    slope: _Last,
    mixed_MM: torch.Tensor,
    generator: torch.Generator,
    probes: int,
    population: float,
) -> dict[str, torch.Tensor]:
    """tr P H Sigma P, g' P H Sigma P g and tr Sigma_P P H Sigma P, averaged over halves.

    `slope` is the derivative along the gradient g.
    """
    count = len(mixed_MM)
    found: dict[str, list[torch.Tensor]] = {
        "noise_curvature": [],
        "mixed_along": [],
        "mixed_square": [],
    }
    for _ in range(probes):
        order = torch.randperm(count, generator=generator).to(g_OI.device)
        signs = (2.0 * torch.randint(2, (count,), generator=generator) - 1).to(g_OI)
        here, there = order[: count // 2], order[count // 2 :]
        inner = [k[here][:, there] for k in samples.inner]
        for one, other, across in (
            (here, there, [k.mT for k in inner]),
            (there, here, inner),
        ):
            half, factors = samples.rows(other), signs[one] / sqrt(len(one))
            part, shares = half.last, samples.rows(one).shares(factors)
            # v = sum_i factors_i e_i
            total = factors.sum()
            v_OI = shares[-1].mT @ samples.last.h[one] - total * g_OI
            pushed = half.derivative_by(shares, across)
            pushed = _Last(pushed.d - total * slope.d[other], pushed.h - total * slope.h[other])
            curved_OI = part.mean_derivative(pushed)  # P H v
            found["noise_curvature"].append(_total(v_OI * curved_OI))
            # v' Sigma_P P H v: the sample in Sigma_P must not be the one in H
            weight = part.dot(v_OI) - _total(g_OI * v_OI)
            pairs = weight * (part.dot(curved_OI) - _total(g_OI * curved_OI)) * len(other)
            same = weight * (part.dot_derivative(pushed) - part.derivative_dot(pushed, g_OI))
            pick = _Picks(len(other), population)
            found["mixed_square"].append(pick.mean(pairs.sum(), same.sum()))
            found["mixed_along"].append(mixed_MM[one][:, other].mean())
    return {name: torch.stack(values).mean() for name, values in found.items()}
