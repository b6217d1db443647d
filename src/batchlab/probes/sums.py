"""Sums of squares over float tensors where they lie in memory, in one compiled call for many.

Terms are widened to double before they are squared, so that sums have all digits and the squares
of small gradients do not fall out of range. One thread; the order of a sum is fixed by its length.

The caller answers for addresses: of contiguous values in this process's memory, of the type that
`like` (an empty array) has. Shapes: K tensors, B examples, I inputs, O outputs.
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
_inner = njit(**_OPTIONS)


@intrinsic
def _values(typingctx, address, like):  # noqa: ARG001
    """A pointer to values of the type of `like`."""

    def build(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(like.dtype)(address, like), build


@_inner
def _square(x):
    total = 0.0
    for j in range(x.size):
        v = float64(x[j])
        total += v * v
    return total


@njit([types.void(int64[::1], int64[::1], real[::1], float64[::1]) for real in _EITHER], **_OPTIONS)
def norms(address_K, size_K, like, norm_K):
    """The Euclidean norm of each tensor, into `norm_K`."""
    for k in range(size_K.size):
        norm_K[k] = _square(carray(_values(address_K[k], like), (size_K[k],))) ** 0.5


@njit(
    [types.void(int64[::1], int64[::1], int64[::1], real[::1], float64[::1]) for real in _EITHER],
    **_OPTIONS,
)
def distances(address_K, other_K, size_K, like, norm_K):
    """The Euclidean norm of each tensor less another, into `norm_K`; the difference rounds."""
    for k in range(size_K.size):
        x = carray(_values(address_K[k], like), (size_K[k],))
        y = carray(_values(other_K[k], like), (size_K[k],))
        total = 0.0
        for j in range(x.size):
            v = float64(x[j] - y[j])
            total += v * v
        norm_K[k] = total**0.5


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
