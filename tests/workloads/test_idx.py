import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from batchlab.spec import UserError
from batchlab.workloads.idx import read_idx
from tests.workloads.fake import idx

LABELS = idx(np.array([5, 0, 4]))


def header(*shape: int, magic: bytes = b"\0\0\x08") -> bytes:
    return magic + bytes([len(shape)]) + struct.pack(f">{len(shape)}I", *shape)


@given(arrays(np.uint8, array_shapes(max_dims=4, max_side=5)))
def test_reads_what_was_written(array: np.ndarray) -> None:
    found = read_idx(idx(array))
    assert found.dtype == np.uint8
    assert found.flags.writeable
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "not IDX: 0 bytes"),
        (b"\0\0\x08", "not IDX: 3 bytes"),
        (b"\x1f\x8b" + LABELS[2:], "starts with 1f 8b, must start with 00 00"),
        (header(3, magic=b"\0\0\x0d") + bytes(12), "type 0x0d: only 0x08"),
        (header(), "0 dimensions: must have 1 to 4"),
        (header(1, 1, 1, 1, 1) + b"x", "5 dimensions: must have 1 to 4"),
        (LABELS[:6], "cut short: 6 bytes, the header alone has 8"),
        (LABELS[:-1], "3 elements: 10 bytes, must be 11"),
        (LABELS + b"x", "3 elements: 12 bytes, must be 11"),
        (header(0), "0 elements: no dimension may be 0"),
        (header(2**32 - 1, 2**32 - 1, 0), "no dimension may be 0"),
        (header(*[2**32 - 1] * 4), f"20 bytes, must be {(2**32 - 1) ** 4 + 20}"),
    ],
)
def test_anything_else_is_told(raw: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        read_idx(raw)
    assert "\n" not in str(raised.value)


nearly = st.builds(
    lambda start, count, rest: start + bytes([count]) + rest,
    st.sampled_from([b"\0\0\x08", b"\0\0\x09", b"\0\1\x08"]),
    st.integers(0, 255),
    st.binary(max_size=64)
    | st.lists(st.integers(0, 4), max_size=5).map(lambda s: struct.pack(f">{len(s)}I", *s)),
)


@given(st.binary(max_size=64) | nearly)
def test_random_bytes_give_an_array_or_a_user_error(raw: bytes) -> None:
    try:
        found = read_idx(raw)
    except UserError:
        return
    assert idx(found) == raw
