"""Steps of plain SGD at small batch sizes, one compiled loop for many steps.

At a batch of one or a few samples a step is bound by the memory its weights lie in, and eager
PyTorch touches them some seven times a step. Here a hidden layer's weights are stored by input
unit, so that a unit whose ReLU is silent costs nothing at all: its row is neither read by the
forward product, nor by the backward product, nor changed. The others are read once forward, and
once backward together with the update. The first layer's weights are not touched: what the steps
so far have changed in its output is sum_s (x_s . x + 1) u_s, with u_s the update of its
pre-activation at sample s, and the inner products of the inputs are known beforehand.

Every layer's units are divided into parts, and a thread has some parts of every layer: the columns
of the weights that lead to its units, which no other thread reads or writes. What is summed over
the units of a layer is summed by part and then over parts, so that the numbers are the same to the
bit with any number of threads.

Shapes: S samples of a block of steps, I and J a hidden layer's inputs and outputs, O classes, P
parts.
"""

from typing import Any

import numpy as np
from numba import njit

from batchlab.engine.loop import units
from batchlab.engine.team import pass_gate

# Sums may be reordered and products fused, so that they run in vector registers; infinities and
# nans keep their meaning, because a step may diverge.
_FAST = {"reassoc", "contract", "nsz", "arcp"}
# The cache knows this file's changes and not those of what it imports: touch it after these.
# Without Numba's own memory management: nothing is allocated here, and counting who refers to an
# array, an atomic operation, would cost more than many of the loops.
_OPTIONS: dict[str, Any] = {
    "cache": True,
    "nogil": True,
    "error_model": "numpy",
    "fastmath": _FAST,
    "_nrt": False,
}
_compiled = njit(**_OPTIONS)
_units = _compiled(units)
_FORWARD_ROWS = 64  # rows of 1,024 numbers that stay in a core's second cache for all samples


@_compiled
def steps(
    z_SI,
    gram_SS,
    y_S,
    hidden,
    biases,
    top,
    top_bias_O,
    size,
    rate,
    h,
    u,
    u_top_SO,
    ends,
    sums,
    logits_PSO,
    chosen,
    factor,
    every,
    u_BO,
    parts,
    member,
    gates,
):
    """Take the steps of one block of samples, in place.

    `z_SI`: the first layer's pre-activations, with all updates before this block and none of it.
    `gram_SS`: the inputs' inner products plus one. `hidden`: tuple of the weights between hidden
    layers and `top` the last layer's, each part by itself, flat, part after part: (I, J) by input
    unit of the hidden ones, (O, J) of the last. `h`: tuple of the hidden layers'
    activations (S, .) and `u`: tuple of the updates of their pre-activations (S, .), -rate / b
    times the gradient for a batch of b samples; `u_top_SO` the same of the last layer; all
    three are written. `ends`: nothing needs the updates of the last step but the last layer's.

    `sums` (two of (P, S, I)) and `logits_PSO`: room for sums by part, as wide as the widest layer
    and as the last; no layer uses the room of the one before it, which a slower member may still be
    reading. `chosen` and `factor`: room for as many units or samples, `every` the numbers from
    nought, `u_BO` room for the last layer's update; each member has its own. `parts` (members + 1):
    where each member's parts begin and end. `member`: who of the team this call is; all members
    call with the same arrays. `gates`: `team.pass_gate` says what they are.
    """
    samples, layers, classes = z_SI.shape[0], len(hidden), top_bias_O.size
    scale = z_SI.dtype.type(-rate)
    mine = range(parts[member], parts[member + 1])
    all_parts = parts[-1]
    for first in range(0, samples, size):
        last = min(first + size, samples)
        for p in mine:
            lo, hi = _units(z_SI.shape[1], p, all_parts)
            for s in range(first, last):
                _add_rows(z_SI[s, lo:hi], gram_SS[s], u[0], lo, hi, every, first)
                _rectify(z_SI[s, lo:hi], h[0][s, lo:hi])
        pass_gate(gates, member)
        for k in range(layers):
            for p in mine:
                lo, hi = _units(h[k + 1].shape[1], p, all_parts)
                w_IJ = _part(hidden[k], h[k].shape[1], lo, hi)
                _forward(h[k], w_IJ, biases[k], h[k + 1], lo, hi, first, last, chosen, factor)
            if k < layers - 1:
                pass_gate(gates, member)
        for p in mine:
            lo, hi = _units(h[layers].shape[1], p, all_parts)
            top_OJ = _part(top, classes, lo, hi)
            for s in range(first, last):
                for o in range(classes):
                    logits_PSO[p, s, o] = _dot(top_OJ[o], h[layers][s, lo:hi])
        pass_gate(gates, member)
        _softmax(logits_PSO, top_bias_O, y_S, u_BO, scale / (last - first), first, last)
        if member == 0:
            for s in range(first, last):
                _copy(u_top_SO[s], u_BO[s - first])
        if ends and last == samples:
            return
        for p in mine:
            lo, hi = _units(h[layers].shape[1], p, all_parts)
            _change_top(
                h[layers], _part(top, classes, lo, hi), u_BO, u[layers], lo, hi, first, last
            )
        for k in range(layers - 1, -1, -1):
            for p in mine:
                lo, hi = _units(h[k + 1].shape[1], p, all_parts)
                w_IJ = _part(hidden[k], h[k].shape[1], lo, hi)
                for s in range(first, last):
                    _add_row(biases[k][lo:hi], u[k + 1].dtype.type(1), u[k + 1][s, lo:hi])
                _backward(h[k], w_IJ, u[k + 1], sums[k % 2, p], lo, hi, first, last, chosen, factor)
            pass_gate(gates, member)
            if k == layers - 1 and member == 0:  # no member reads them before the next gate
                for s in range(last - first):
                    _add_row(top_bias_O, top_bias_O.dtype.type(1), u_BO[s])
            for p in mine:
                lo, hi = _units(u[k].shape[1], p, all_parts)
                for s in range(first, last):
                    _copy(u[k][s, lo:hi], sums[k % 2, 0, s, lo:hi])
                    for q in range(1, all_parts):
                        _add_row(u[k][s, lo:hi], u[k].dtype.type(1), sums[k % 2, q, s, lo:hi])


@njit(inline="always")  # a function by itself could not return a part of what it was given
def _part(flat, rows, lo, hi):
    """A part's weights: by itself in memory, so that no core fetches ahead what another writes."""
    return flat[rows * lo : rows * hi].reshape(rows, hi - lo)


@_compiled
def _copy(out, row):
    for j in range(out.size):
        out[j] = row[j]


@_compiled
def _rectify(z_I, h_I):
    for i in range(z_I.size):
        h_I[i] = 0 if z_I[i] <= 0 else z_I[i]  # a nan stays one


@_compiled
def _forward(h_SI, w_IJ, bias_J, out_SJ, lo, hi, first, last, chosen, factor):
    """relu(h w + bias) of the batch, a stretch of rows at a time for all its samples."""
    for s in range(first, last):
        _copy(out_SJ[s, lo:hi], bias_J[lo:hi])
    for start in range(0, w_IJ.shape[0], _FORWARD_ROWS):
        stop = min(start + _FORWARD_ROWS, w_IJ.shape[0])
        for s in range(first, last):
            count = 0
            for i in range(start, stop):  # without a branch: which unit is silent is a coin toss
                chosen[count] = i
                factor[count] = h_SI[s, i]
                count += h_SI[s, i] != 0
            _add_rows(out_SJ[s, lo:hi], factor, w_IJ, 0, hi - lo, chosen, count)
    for s in range(first, last):
        _rectify(out_SJ[s, lo:hi], out_SJ[s, lo:hi])


@_compiled
def _softmax(logits_PSO, bias_O, y_S, u_BO, scale, first, last):
    """The last layer's update: scale times (softmax - one-hot), of logits given by part."""
    for s in range(first, last):
        row = u_BO[s - first]
        highest = -np.inf
        for o in range(row.size):
            row[o] = bias_O[o]
            for p in range(logits_PSO.shape[0]):
                row[o] += logits_PSO[p, s, o]
            highest = max(highest, row[o])
        total = row.dtype.type(0)
        for o in range(row.size):
            row[o] = np.exp(row[o] - highest)
            total += row[o]
        for o in range(row.size):
            row[o] *= scale / total
        row[y_S[s]] -= scale


@_compiled
def _change_top(h_SJ, w_OJ, u_BO, below_SJ, lo, hi, first, last):
    """What the last layer passes down, and then its update."""
    for s in range(first, last):
        below, h = below_SJ[s, lo:hi], h_SJ[s, lo:hi]
        below[:] = 0
        for o in range(w_OJ.shape[0]):
            _add_row(below, u_BO[s - first, o], w_OJ[o])
        for j in range(hi - lo):
            below[j] = 0 if h[j] <= 0 else below[j]
    for s in range(first, last):
        for o in range(w_OJ.shape[0]):
            _add_row(w_OJ[o], u_BO[s - first, o], h_SJ[s, lo:hi])


@_compiled
def _backward(h_SI, w_IJ, u_SJ, below_SI, lo, hi, first, last, chosen, factor):
    """Backward product of the batch and its update, both from one reading of a row."""
    if last - first == 1:
        count = 0
        for i in range(w_IJ.shape[0]):
            below_SI[first, i] = 0
            chosen[count] = i
            count += h_SI[first, i] != 0
        for n in range(count):
            i = chosen[n]
            below_SI[first, i] = _dot_and_add(w_IJ[i], h_SI[first, i], u_SJ[first, lo:hi])
        return
    for i in range(w_IJ.shape[0]):
        count = 0
        for s in range(first, last):
            below_SI[s, i] = 0
            chosen[count] = s
            factor[count] = h_SI[s, i]
            count += h_SI[s, i] != 0
        row = w_IJ[i]
        if count == 1:
            s = chosen[0]
            below_SI[s, i] = _dot_and_add(row, factor[0], u_SJ[s, lo:hi])
        elif count == 2:
            s, t = chosen[0], chosen[1]
            below_SI[s, i], below_SI[t, i] = _dot_and_add_two(
                row, factor[0], u_SJ[s, lo:hi], factor[1], u_SJ[t, lo:hi]
            )
        elif count == 3:
            s, t, v = chosen[0], chosen[1], chosen[2]
            below_SI[s, i], below_SI[t, i], below_SI[v, i] = _dot_and_add_three(
                row,
                factor[0],
                u_SJ[s, lo:hi],
                factor[1],
                u_SJ[t, lo:hi],
                factor[2],
                u_SJ[v, lo:hi],
            )
        elif count > 3:
            whole = count - count % 4
            for n in range(0, whole, 4):
                s, t, v, x = chosen[n], chosen[n + 1], chosen[n + 2], chosen[n + 3]
                below_SI[s, i], below_SI[t, i], below_SI[v, i], below_SI[x, i] = _dots(
                    row, u_SJ[s, lo:hi], u_SJ[t, lo:hi], u_SJ[v, lo:hi], u_SJ[x, lo:hi]
                )
            for n in range(whole, count):
                below_SI[chosen[n], i] = _dot(row, u_SJ[chosen[n], lo:hi])
            _add_rows(row, factor, u_SJ, lo, hi, chosen, count)


@_compiled
def _add_rows(out, factor, rows, lo, hi, chosen, count):
    """Add `factor[n] * rows[chosen[n], lo:hi]` for the first `count` n, four at a time."""
    whole = count - count % 4
    for n in range(0, whole, 4):
        a, b, c, d = factor[n], factor[n + 1], factor[n + 2], factor[n + 3]
        _add_four(
            out,
            a,
            rows[chosen[n], lo:hi],
            b,
            rows[chosen[n + 1], lo:hi],
            c,
            rows[chosen[n + 2], lo:hi],
            d,
            rows[chosen[n + 3], lo:hi],
        )
    if count - whole == 3:
        _add_three(
            out,
            factor[whole],
            rows[chosen[whole], lo:hi],
            factor[whole + 1],
            rows[chosen[whole + 1], lo:hi],
            factor[whole + 2],
            rows[chosen[whole + 2], lo:hi],
        )
    elif count - whole == 2:
        _add_two(
            out,
            factor[whole],
            rows[chosen[whole], lo:hi],
            factor[whole + 1],
            rows[chosen[whole + 1], lo:hi],
        )
    elif count - whole == 1:
        _add_row(out, factor[whole], rows[chosen[whole], lo:hi])


@_compiled
def _add_row(out, a, r):
    for j in range(out.size):
        out[j] += a * r[j]


@_compiled
def _add_two(out, a, r, b, s):
    for j in range(out.size):
        out[j] += a * r[j] + b * s[j]


@_compiled
def _add_three(out, a, r, b, s, c, t):
    for j in range(out.size):
        out[j] += a * r[j] + b * s[j] + c * t[j]


@_compiled
def _add_four(out, a, r, b, s, c, t, d, v):
    for j in range(out.size):
        out[j] += a * r[j] + b * s[j] + c * t[j] + d * v[j]


@_compiled
def _dot_and_add(row, a, u):
    """The inner product with `u` before `a u` is added."""
    total = row.dtype.type(0)
    for j in range(row.size):
        w = row[j]
        total += u[j] * w
        row[j] = w + a * u[j]
    return total


@_compiled
def _dot_and_add_two(row, a, u, b, v):
    """The inner products with `u` and `v` before `a u + b v` is added."""
    one = other = row.dtype.type(0)
    for j in range(row.size):
        w = row[j]
        one += u[j] * w
        other += v[j] * w
        row[j] = w + a * u[j] + b * v[j]
    return one, other


@_compiled
def _dot_and_add_three(row, a, u, b, v, c, x):
    """The same of three."""
    zero = row.dtype.type(0)
    one, other, third = zero, zero, zero
    for j in range(row.size):
        w = row[j]
        one += u[j] * w
        other += v[j] * w
        third += x[j] * w
        row[j] = w + a * u[j] + b * v[j] + c * x[j]
    return one, other, third


@_compiled
def _dot(u, r):
    total = u.dtype.type(0)  # a float64 zero would carry the whole sum in double
    for j in range(u.size):
        total += u[j] * r[j]
    return total


@_compiled
def _dots(u, r, s, t, v):
    """Four inner products with one reading of `u`."""
    zero = u.dtype.type(0)
    a, b, c, d = zero, zero, zero, zero
    for j in range(u.size):
        a += u[j] * r[j]
        b += u[j] * s[j]
        c += u[j] * t[j]
        d += u[j] * v[j]
    return a, b, c, d
