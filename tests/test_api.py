"""The package as a Python user meets it."""

import pytest

import batchlab


def test_five_lines() -> None:
    records = batchlab.train("digits", ["128:0.01:2", batchlab.Phase.parse("700:0.01:1")], seed=1)
    assert records.attrs["status"] == "finished"
    distance = records.query("name == 'distance' and layer == 'weights'")
    assert distance["value"].is_monotonic_increasing
    assert distance["step"].iloc[-1] == 2 * 12 + 3


def test_errors_are_one_line() -> None:
    with pytest.raises(batchlab.UserError, match="unknown 'cifar'"):
        batchlab.train("cifar", ["8:0.1:1"])
    with pytest.raises(batchlab.UserError, match="larger than the 1437"):
        batchlab.train("digits", ["2000:0.1:1"])
