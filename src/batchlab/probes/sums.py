"""Sums of squares over float tensors where they lie in memory, in one compiled call for many.

Terms are widened to double before they are squared, so that sums have all digits and the squares
of small gradients do not fall out of range. One thread; the order of a sum is fixed by its length.

The caller answers for addresses: of contiguous values in this process's memory, of the type that
`like` (an empty array) has. Shapes: P tensors, K layers, B examples, I inputs, O outputs.
"""

from typing import Any

from numba import float32, float64, int64, njit, types
from numba.extending import intrinsic
from numba.np.numpy_support import carray

# Sums may be reordered, so that they run in vector registers; infinities and nans keep their
# meaning, because a step may overflow.
_OPTIONS: dict[str, Any] = {
    "cache": True,
    "nogil": True,
    "error_model": "numpy",
    "fastmath": {"reassoc", "contract", "nsz", "arcp"},
}
_EITHER = (float32, float64)
# Parts of a tensor that are read side by side: what a core fetches ahead by itself ends with each
# page of memory, so that one after the other it waits at every one.
STREAMS = 4
_inner = njit(**_OPTIONS)


@intrinsic
def _values(typingctx, address, like):  # noqa: ARG001
    """A pointer to values of the type of `like`."""

    def build(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(like.dtype)(address, like), build


@_inner
def _square(x):
    """Of a row, which is short."""
    total = 0.0
    for j in range(x.size):
        v = float64(x[j])
        total += v * v
    return total


@_inner
def _square_of_all(x):
    part = x.size // STREAMS
    total = 0.0
    for j in range(part):
        for stream in range(STREAMS):
            v = float64(x[stream * part + j])
            total += v * v
    return total + _square(x[STREAMS * part :])


@_inner
def _distance(x, y):
    """Its square; the difference rounds."""
    part = x.size // STREAMS
    total = 0.0
    for j in range(part):
        for stream in range(STREAMS):
            v = float64(x[stream * part + j] - y[stream * part + j])
            total += v * v
    for j in range(STREAMS * part, x.size):
        v = float64(x[j] - y[j])
        total += v * v
    return total


@njit(
    [types.UniTuple(float64, 2)(int64, int64, int64, int64, int64, real[::1]) for real in _EITHER],
    **_OPTIONS,
)
def rows(a, d, examples, inputs, outputs, like):
    """sqrt(sum_i |a_i|^2 |d_i|^2) and sqrt(sum_i |d_i|^2), rows of (B, I) at `a`, (B, O) at `d`."""
    a_BI = carray(_values(a, like), (examples, inputs))
    d_BO = carray(_values(d, like), (examples, outputs))
    both = 0.0
    second = 0.0
    for i in range(examples):
        square = _square(d_BO[i])
        both += _square(a_BI[i]) * square
        second += square
    return both**0.5, second**0.5


@njit([types.void(int64[::1], int64[::1], real[::1], float64[::1]) for real in _EITHER], **_OPTIONS)
def norms(address_P, size_P, like, norm_P):
    """The Euclidean norm of each tensor, into `norm_P`."""
    for p in range(size_P.size):
        norm_P[p] = _square_of_all(carray(_values(address_P[p], like), (size_P[p],))) ** 0.5


@njit(
    [types.void(int64[::1], int64[::1], real[::1], float64, float64[::1]) for real in _EITHER],
    **_OPTIONS,
)
def norms_and_rows(places, size_P, like, factor, told):
    """`norms`, and behind them `factor` times those of layers' `rows`.

    Places are the tensors' addresses and seven numbers a layer: the first five of `rows`, and where
    its two norms go behind the tensors'; nowhere below zero.
    """
    tensors = size_P.size
    norms(places[:tensors], size_P, like, told[:tensors])
    for k in range(tensors, places.size, 7):
        examples, inputs, outputs = places[k + 2], places[k + 3], places[k + 4]
        both, second = rows(places[k], places[k + 1], examples, inputs, outputs, like)
        if places[k + 5] >= 0:
            told[tensors + places[k + 5]] = factor * both
        if places[k + 6] >= 0:
            told[tensors + places[k + 6]] = factor * second


@njit(
    [types.void(int64[::1], int64[::1], int64[::1], real[::1], float64[::1]) for real in _EITHER],
    **_OPTIONS,
)
def distances(address_P, other_P, size_P, like, norm_P):
    """The Euclidean norm of each tensor less another, into `norm_P`."""
    for p in range(size_P.size):
        x = carray(_values(address_P[p], like), (size_P[p],))
        y = carray(_values(other_P[p], like), (size_P[p],))
        norm_P[p] = _distance(x, y) ** 0.5
