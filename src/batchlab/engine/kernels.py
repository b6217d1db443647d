"""Steps of plain SGD at small batch sizes, one compiled loop for many steps.

At a batch of one or a few samples a step is bound by the memory its weights lie in, and eager
PyTorch touches them some seven times a step. Here a hidden layer's weights are stored by input
unit, so that a unit whose ReLU is silent costs nothing at all: its row is neither read by the
forward product, nor by the backward product, nor changed. The others are read once forward, and
once backward together with the update. The first layer's weights are not touched: what the steps
so far have changed in its output is sum_s (x_s . x + 1) u_s, with u_s the update of its
pre-activation at sample s, and the inner products of the inputs are known beforehand.

Shapes: S samples of a block of steps, I and J a hidden layer's inputs and outputs, O classes.
"""

import numpy as np
from numba import njit

# Sums may be reordered and products fused, so that they run in vector registers; infinities and
# nans keep their meaning, because a step may diverge.
_FAST = {"reassoc", "contract", "nsz", "arcp"}
_compiled = njit(cache=True, nogil=True, error_model="numpy", fastmath=_FAST)
_FORWARD_ROWS = 64  # rows of 1,024 numbers that stay in a core's second cache for all samples


@_compiled
def steps(z_SI, gram_SS, y_S, hidden, biases, top_OJ, top_bias_O, size, rate, h, u, u_top_SO, ends):
    """Take the steps of one block of samples, in place.

    `z_SI`: the first layer's pre-activations, with all updates before this block and none of it.
    `gram_SS`: the inputs' inner products plus one. `hidden`: tuple of the weights (I, J) between
    hidden layers, by input unit; `top_OJ`: the last layer's. `h`: tuple of the hidden layers'
    activations (S, .) and `u`: tuple of the updates of their pre-activations (S, .), -rate / b
    times the gradient for a batch of b samples; `u_top_SO` the same of the last layer; all
    three are written. `ends`: nothing needs the updates of the last step but the last layer's.
    """
    samples = z_SI.shape[0]
    layers = len(hidden)
    scalar = z_SI.dtype.type
    width = samples
    for k in range(layers + 1):
        width = max(width, h[k].shape[1])
    chosen = np.zeros(width + 4, np.int64)
    factor = np.zeros(width + 4, z_SI.dtype)
    every = np.arange(samples)
    for first in range(0, samples, size):
        last = min(first + size, samples)
        for s in range(first, last):
            _add_rows(z_SI[s], gram_SS[s], u[0], every, first)
            _rectify(z_SI[s], h[0][s])
        for k in range(layers):
            _forward(h[k], hidden[k], biases[k], h[k + 1], first, last, chosen, factor)
        _top(
            h[layers],
            top_OJ,
            top_bias_O,
            y_S,
            u_top_SO,
            scalar(-rate / (last - first)),
            first,
            last,
        )
        if ends and last == samples:
            return
        _below_top(h[layers], top_OJ, u_top_SO, u[layers], first, last)
        for s in range(first, last):
            for o in range(top_OJ.shape[0]):
                _add_row(top_OJ[o], u_top_SO[s, o], h[layers][s])
                top_bias_O[o] += u_top_SO[s, o]
        for k in range(layers - 1, -1, -1):
            for s in range(first, last):
                _add_row(biases[k], scalar(1), u[k + 1][s])
            _backward(h[k], hidden[k], u[k + 1], u[k], first, last, chosen, factor)


@_compiled
def _rectify(z_I, h_I):
    for i in range(z_I.size):
        h_I[i] = z_I[i] if z_I[i] > 0 else 0


@_compiled
def _forward(h_SI, w_IJ, bias_J, out_SJ, first, last, chosen, factor):
    """relu(h w + bias) of the batch, a stretch of rows at a time for all its samples."""
    for s in range(first, last):
        out_SJ[s, :] = bias_J
    for start in range(0, w_IJ.shape[0], _FORWARD_ROWS):
        stop = min(start + _FORWARD_ROWS, w_IJ.shape[0])
        for s in range(first, last):
            count = 0
            for i in range(start, stop):  # without a branch: which unit is silent is a coin toss
                chosen[count] = i
                factor[count] = h_SI[s, i]
                count += h_SI[s, i] > 0
            _add_rows(out_SJ[s], factor, w_IJ, chosen, count)
    for s in range(first, last):
        _rectify(out_SJ[s], out_SJ[s])


@_compiled
def _top(h_SJ, w_OJ, bias_O, y_S, u_SO, scale, first, last):
    """The last layer's update: scale times (softmax - one-hot)."""
    for s in range(first, last):
        highest = -np.inf
        for o in range(w_OJ.shape[0]):
            u_SO[s, o] = bias_O[o] + _dot(w_OJ[o], h_SJ[s])
            highest = max(highest, u_SO[s, o])
        total = u_SO.dtype.type(0)
        for o in range(w_OJ.shape[0]):
            u_SO[s, o] = np.exp(u_SO[s, o] - highest)
            total += u_SO[s, o]
        for o in range(w_OJ.shape[0]):
            u_SO[s, o] *= scale / total
        u_SO[s, y_S[s]] -= scale


@_compiled
def _below_top(h_SJ, w_OJ, u_SO, below_SJ, first, last):
    for s in range(first, last):
        below_SJ[s, :] = 0
        for o in range(w_OJ.shape[0]):
            _add_row(below_SJ[s], u_SO[s, o], w_OJ[o])
        for j in range(h_SJ.shape[1]):
            below_SJ[s, j] = below_SJ[s, j] if h_SJ[s, j] > 0 else 0


@_compiled
def _backward(h_SI, w_IJ, u_SJ, below_SI, first, last, chosen, factor):
    """Backward product of the batch and its update, both from one reading of a row."""
    if last - first == 1:
        count = 0
        for i in range(w_IJ.shape[0]):
            below_SI[first, i] = 0
            chosen[count] = i
            count += h_SI[first, i] > 0
        for n in range(count):
            i = chosen[n]
            below_SI[first, i] = _dot_and_add(w_IJ[i], h_SI[first, i], u_SJ[first])
        return
    for i in range(w_IJ.shape[0]):
        count = 0
        for s in range(first, last):
            below_SI[s, i] = 0
            chosen[count] = s
            factor[count] = h_SI[s, i]
            count += h_SI[s, i] > 0
        row = w_IJ[i]
        if count == 1:
            s = chosen[0]
            below_SI[s, i] = _dot_and_add(row, factor[0], u_SJ[s])
        elif count == 2:
            s, t = chosen[0], chosen[1]
            below_SI[s, i], below_SI[t, i] = _dot_and_add_two(
                row, factor[0], u_SJ[s], factor[1], u_SJ[t]
            )
        elif count > 2:
            for n in range(count, count + 3):  # fill the last four with one sample again
                chosen[n] = chosen[count - 1]
            for n in range(0, count, 4):
                s, t, v, x = chosen[n], chosen[n + 1], chosen[n + 2], chosen[n + 3]
                below_SI[s, i], below_SI[t, i], below_SI[v, i], below_SI[x, i] = _dots(
                    row, u_SJ[s], u_SJ[t], u_SJ[v], u_SJ[x]
                )
            _add_rows(row, factor, u_SJ, chosen, count)


@_compiled
def _add_rows(out, factor, rows, chosen, count):
    """Add `factor[n] * rows[chosen[n]]` for the first `count` n, four at a time."""
    whole = count - count % 4
    for n in range(0, whole, 4):
        a, b, c, d = factor[n], factor[n + 1], factor[n + 2], factor[n + 3]
        _add_four(
            out,
            a,
            rows[chosen[n]],
            b,
            rows[chosen[n + 1]],
            c,
            rows[chosen[n + 2]],
            d,
            rows[chosen[n + 3]],
        )
    if count - whole == 3:
        _add_three(
            out,
            factor[whole],
            rows[chosen[whole]],
            factor[whole + 1],
            rows[chosen[whole + 1]],
            factor[whole + 2],
            rows[chosen[whole + 2]],
        )
    elif count - whole == 2:
        _add_two(
            out, factor[whole], rows[chosen[whole]], factor[whole + 1], rows[chosen[whole + 1]]
        )
    elif count - whole == 1:
        _add_row(out, factor[whole], rows[chosen[whole]])


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
