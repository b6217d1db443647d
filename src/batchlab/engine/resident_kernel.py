"""The kernel of the resident trainer: many steps of a perceptron whose weights stay in registers.

Every program keeps its own units of both hidden layers: their rows of the weights, and besides the
columns of the second layer's weights that leave its units of the first, so that no product is
summed over programs; the columns are changed by the same arithmetic as the rows, and remain equal
to them to the bit. The last layer is small and every program has it whole. A step exchanges both
hidden layers' outputs, and nothing else.

**Exchange.** A word of 64 bits is a unit's output beside the number of its step, written and read
as one, and a reader looks until all words are of the step: no barrier, no fence, no order between
two addresses is relied on (NCCL's protocol LL does the same). Words lie on two sides that steps
take in turns, so that none is written again before everyone has read it: a program begins a step
only once it has read what every other one has published of the step before, and each publishes
something, of one layer at least, after it has read all of the steps before that. All programs must
run at the same time (a cooperative launch), or the first would look for ever.

**Order.** Sums over units are Triton's reductions, whose order is fixed by the compiled shapes;
samples are added one after another.

Shapes: I inputs, H and J units of the first and the second hidden layer, O classes, U and V a
program's own units of H and J, B samples of a step; in the kernel I, H, J, O, U and V are padded to
powers of two, and what is past the end is zero. A tuple holds one tensor a sample.
"""

import triton
import triton.language as tl


@triton.jit
def _places(row, column, row_stride, column_stride: tl.constexpr, rows, columns):
    """Where a part of a matrix lies, and which of its places there are."""
    place = row[:, None] * row_stride + column[None, :] * column_stride
    if column_stride == 1:
        # So that a thread has the same two neighbours of weights as it reads of words of 64 bits.
        place = tl.max_contiguous(place, (1, 2))
    return place, (row[:, None] < rows) & (column[None, :] < columns)


@triton.jit
def _rectified(z):
    return tl.where(z <= 0, 0.0, z)  # a nan stays one


@triton.jit
def _side(words, tag, room: tl.constexpr):
    """Where the step's words lie."""
    return words + (tag % 2) * room


@triton.jit
def _publish(words, units, values, tag, mask):
    bits = values.to(tl.int32, bitcast=True).to(tl.int64)
    tl.atomic_xchg(words + units, (bits << 32) | tag, mask=mask, sem="relaxed")


@triton.jit
def _look(words, tag, width: tl.constexpr, padded: tl.constexpr, size: tl.constexpr):
    units = tl.arange(0, padded)
    none = tl.zeros((padded,), tl.int64) + tag  # has arrived, and is zero
    seen = ()
    for b in tl.static_range(size):
        place = words + b * width + units
        seen = seen + (tl.load(place, mask=units < width, other=none, volatile=True),)
    return seen


@triton.jit
def _late(seen, tag, size: tl.constexpr):
    late = seen[0].to(tl.int32) != tag
    for b in tl.static_range(1, size):
        late = late | (seen[b].to(tl.int32) != tag)
    return tl.max(late.to(tl.int32), 0)


@triton.jit
def _collect(words, tag, width: tl.constexpr, padded: tl.constexpr, size: tl.constexpr):
    """All units' outputs of the step, once they have all been published."""
    seen = _look(words, tag, width, padded, size)
    while _late(seen, tag, size) > 0:
        seen = _look(words, tag, width, padded, size)
    values = ()
    for b in tl.static_range(size):
        values = values + ((seen[b] >> 32).to(tl.int32).to(tl.float32, bitcast=True),)
    return values


@triton.jit
def _inputs(x, first, samples, width: tl.constexpr, padded: tl.constexpr, size: tl.constexpr):
    """The samples of the step that begins at `first`; those past the end are zero."""
    column = tl.arange(0, padded)
    rows = ()
    for b in tl.static_range(size):
        n = first + b
        mask = (column < width) & (n < samples)
        rows = rows + (tl.load(x + n.to(tl.int64) * width + column, mask=mask, other=0.0),)
    return rows


@triton.jit
def _products(w, rows, size: tl.constexpr):
    """w's inner products with each sample's row, by one reduction for two samples: it costs the
    waiting of one."""
    sums = ()
    for b in tl.static_range(0, size - 1, 2):
        both = tl.join(w * rows[b][None, :], w * rows[b + 1][None, :])
        sums = sums + tl.split(tl.sum(both, 1))
    if size % 2 == 1:
        sums = sums + (tl.sum(w * rows[size - 1][None, :], 1),)
    return sums


@triton.jit
def _first_layer(x_I, w_UI, bias_U, words, units, tag, width: tl.constexpr, size: tl.constexpr):
    """A program's own units' outputs, which are published."""
    z_U = _products(w_UI, x_I, size)
    for b in tl.static_range(size):
        h_U = _rectified(z_U[b] + bias_U)
        _publish(words + b * width, units, h_U, tag, units < width)


@triton.jit
def _softmax_less(
    product_O,
    b: tl.constexpr,
    bias_O,
    label,
    classes: tl.constexpr,
    O: tl.constexpr,
    R: tl.constexpr,
    parts: tl.constexpr,
):
    """Sample b's softmax less its one-hot label, by parts of the classes."""
    z_O, highest = (), float("-inf")
    for k in tl.static_range(parts):
        o = k * O + tl.arange(0, R if k else O)
        z = tl.where(o < classes, product_O[k][b] + bias_O[k], float("-inf"))
        highest = tl.maximum(highest, tl.max(z, 0))
        z_O = z_O + (z,)
    e_O, total = (), 0.0
    for k in tl.static_range(parts):
        e = tl.exp(z_O[k] - highest)
        total += tl.sum(e, 0)
        e_O = e_O + (e,)
    d_O = ()
    for k in tl.static_range(parts):
        o = k * O + tl.arange(0, R if k else O)
        d_O = d_O + (e_O[k] / total - (o == label).to(tl.float32),)
    return d_O


@triton.jit(do_not_specialize=["samples"], do_not_specialize_on_alignment=["x", "y", "signs"])
def take(
    x,  # (samples, inputs) in the order of the steps
    y,  # (samples,) int64
    signs,  # (steps,): the sum of the last layer's gradient, finite just where the loss is
    w1,
    b1,
    w2,
    b2,
    w3,
    b3,  # the layers' own parameters, as `nn.Linear` has them; read at first and written at last
    words,  # int64 (2 * size * (first + second)), zero at the start
    samples,
    rate,
    inputs: tl.constexpr,
    first: tl.constexpr,
    second: tl.constexpr,
    classes: tl.constexpr,
    I: tl.constexpr,
    H: tl.constexpr,
    J: tl.constexpr,
    O: tl.constexpr,
    R: tl.constexpr,
    parts: tl.constexpr,
    U: tl.constexpr,
    V: tl.constexpr,
    size: tl.constexpr,
):
    """Take the steps of plain SGD on the mean loss of each `size` samples (the last as short as it
    must be) in float32."""
    program = tl.program_id(0)
    i, h, j = tl.arange(0, I), tl.arange(0, H), tl.arange(0, J)
    u, v = program * U + tl.arange(0, U), program * V + tl.arange(0, V)
    room: tl.constexpr = size * (first + second)
    words2 = words + size * first

    at_UI, is_UI = _places(u, i, inputs, 1, first, inputs)
    at_VH, is_VH = _places(v, h, first, 1, second, first)
    at_UJ, is_UJ = _places(u, j, 1, first, first, second)
    w_UI = tl.load(w1 + at_UI, mask=is_UI, other=0.0)
    w_VH = tl.load(w2 + at_VH, mask=is_VH, other=0.0)
    w_UJ = tl.load(w2 + at_UJ, mask=is_UJ, other=0.0)
    w_OJ, b_O = (), ()
    for k in tl.static_range(parts):
        o = k * O + tl.arange(0, R if k else O)
        at_OJ, is_OJ = _places(o, j, second, 1, classes, second)
        w_OJ = w_OJ + (tl.load(w3 + at_OJ, mask=is_OJ, other=0.0),)
        b_O = b_O + (tl.load(b3 + o, mask=o < classes, other=0.0),)
    b_U = tl.load(b1 + u, mask=u < first, other=0.0)
    b_V = tl.load(b2 + v, mask=v < second, other=0.0)
    # Where a program's own units are among all; past the end it does not matter which.
    own_u, own_v = tl.minimum(u, H - 1), tl.minimum(v, J - 1)

    steps = tl.cdiv(samples, size)
    x_I = _inputs(x, program * 0, samples, inputs, I, size)  # zero, and no constant of Python's
    _first_layer(x_I, w_UI, b_U, _side(words, 1, room), u, 1, first, size)
    for step in tl.range(steps, num_stages=1):
        begin = step * size
        labels = ()
        for b in tl.static_range(size):
            labels = labels + (tl.load(y + begin + b, mask=begin + b < samples, other=0),)
        tag = step + 1
        h_H = _collect(_side(words, tag, room), tag, first, H, size)
        z_V = _products(w_VH, h_H, size)
        for b in tl.static_range(size):
            h_V = _rectified(z_V[b] + b_V)
            _publish(_side(words2, tag, room) + b * second, v, h_V, tag, v < second)
        next_I = _inputs(x, begin + size, samples, inputs, I, size)  # hidden by the waiting
        h_J = _collect(_side(words2, tag, room), tag, second, J, size)

        factor = -rate / tl.minimum(size, samples - begin).to(tl.float32)
        sign = 0.0
        z_O, u_O, u_J = (), (), ()
        for k in tl.static_range(parts):
            z_O = z_O + (_products(w_OJ[k], h_J, size),)
        for b in tl.static_range(size):
            d_O = _softmax_less(z_O, b, b_O, labels[b], classes, O, R, parts)
            d_J, scaled_O = tl.zeros((J,), tl.float32), ()
            for k in tl.static_range(parts):
                d = tl.where(begin + b < samples, d_O[k], 0.0)
                sign += tl.sum(d, 0)
                d *= factor
                d_J += tl.sum(w_OJ[k] * d[:, None], 0)
                scaled_O = scaled_O + (d,)
            u_O = u_O + (scaled_O,)
            u_J = u_J + (tl.where(h_J[b] <= 0, 0.0, d_J),)
        tl.store(signs + step, sign, mask=program == 0)
        own_U, below_U = (), _products(w_UJ, u_J, size)
        for b in tl.static_range(size):
            h_U = tl.gather(h_H[b], own_u, 0)
            d_U = tl.where(h_U <= 0, 0.0, below_U[b])
            w_UI = tl.fma(d_U[:, None], x_I[b][None, :], w_UI)
            b_U += d_U
            own_U = own_U + (h_U,)

        # The next step's first layer, so that it is on its way while the other weights change.
        x_I = next_I
        _first_layer(x_I, w_UI, b_U, _side(words, tag + 1, room), u, tag + 1, first, size)
        for b in tl.static_range(size):
            u_V = tl.gather(u_J[b], own_v, 0)
            w_VH = tl.fma(u_V[:, None], h_H[b][None, :], w_VH)
            w_UJ = tl.fma(own_U[b][:, None], u_J[b][None, :], w_UJ)
            b_V += u_V
        changed, changed_b = (), ()
        for k in tl.static_range(parts):
            w = w_OJ[k]
            bias = b_O[k]
            for b in tl.static_range(size):
                w = tl.fma(u_O[b][k][:, None], h_J[b][None, :], w)
                bias += u_O[b][k]
            changed, changed_b = changed + (w,), changed_b + (bias,)
        w_OJ, b_O = changed, changed_b

    # Weights are written where others have read them, once everyone has: what is published of a
    # step after the last says so, the first layer's above and the second's here.
    tag = steps + 1
    for b in tl.static_range(size):
        _publish(_side(words2, tag, room) + b * second, v, b_V, tag, v < second)
    late = 1
    while late > 0:
        late = _late(_look(_side(words, tag, room), tag, first, H, size), tag, size)
        late += _late(_look(_side(words2, tag, room), tag, second, J, size), tag, size)
    # Zero, which the compiler does not know: places are reckoned anew and not kept in registers.
    program += late
    u, v = program * U + tl.arange(0, U), program * V + tl.arange(0, V)
    at_UI, is_UI = _places(u, i, inputs, 1, first, inputs)
    at_VH, is_VH = _places(v, h, first, 1, second, first)
    tl.store(w1 + at_UI, w_UI, mask=is_UI)
    tl.store(w2 + at_VH, w_VH, mask=is_VH)
    tl.store(b1 + u, b_U, mask=u < first)
    tl.store(b2 + v, b_V, mask=v < second)
    one = program == 0
    for k in tl.static_range(parts):
        o = late + k * O + tl.arange(0, R if k else O)
        at_OJ, is_OJ = _places(o, j, second, 1, classes, second)
        tl.store(w3 + at_OJ, w_OJ[k], mask=is_OJ & one)
        tl.store(b3 + o, b_O[k], mask=(o < classes) & one)
