"""The IDX format of the MNIST family: a header, then the array's bytes in row-major order.

Source: LeCun, Cortes & Burges, "The MNIST database of handwritten digits", file formats. Bytes
0 and 1 are zero, byte 2 names the element type, byte 3 the number of dimensions; then the
dimensions, unsigned, 32 bits each, the most significant byte first.
"""

import struct
from math import prod

import numpy as np
import numpy.typing as npt

from batchlab.spec import UserError

UNSIGNED_BYTE = 0x08
MAGIC_BYTES = 4
DIMENSION_BYTES = 4
MAX_DIMENSIONS = 4  # the family has 1 (labels) and 3 (images); NumPy's own limit is far above


def read_idx(raw: bytes) -> npt.NDArray[np.uint8]:
    """The array of an IDX file of unsigned bytes, writable, in the header's shape.

    Raises `UserError` where the bytes are anything else, to the exact length.
    """
    if len(raw) < MAGIC_BYTES:
        raise UserError(f"not IDX: {len(raw)} bytes, the header alone has {MAGIC_BYTES} or more")
    zeros, kind, dimensions = struct.unpack_from(">HBB", raw)
    if zeros:
        raise UserError(f"not IDX: starts with {raw[:2].hex(' ')}, must start with 00 00")
    if kind != UNSIGNED_BYTE:
        raise UserError(f"IDX of type 0x{kind:02x}: only 0x08, unsigned bytes, is read")
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        raise UserError(f"IDX of {dimensions} dimensions: must have 1 to {MAX_DIMENSIONS}")
    header = MAGIC_BYTES + DIMENSION_BYTES * dimensions
    if len(raw) < header:
        raise UserError(f"IDX cut short: {len(raw)} bytes, the header alone has {header}")
    shape = struct.unpack_from(f">{dimensions}I", raw, MAGIC_BYTES)
    size = prod(shape)  # Python's integers: no header can overflow it
    text = " x ".join(str(length) for length in shape)
    if not size:
        raise UserError(f"IDX of {text} elements: no dimension may be 0")
    if len(raw) != header + size:
        raise UserError(f"IDX of {text} elements: {len(raw)} bytes, must be {header + size}")
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape).copy()
