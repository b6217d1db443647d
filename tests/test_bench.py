"""`batchlab bench` from the command line: the shape of what it says, never how fast anything is."""

from typing import Any

import pytest

from batchlab.speed import comparison, hardware
from batchlab.speed.comparison import SIZES, Row, Spread, choose_sizes
from batchlab.speed.limit import Rates
from tests.conftest import Call
from tests.test_cli import fails, told

SPEEDS = ["naive", "eager", "batchlab", "limit"]
RATIOS = ["over_naive", "over_eager", "of_limit"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "STRETCH_S", 0.004)
    monkeypatch.setattr(hardware, "SIDE", 64)
    monkeypatch.setattr(hardware, "SWEEP", 2**17)


def test_json(batchlab: Call) -> None:
    words = ("bench", "--batch-sizes", "1437,1,64", "--rounds", 3, "--threads", 1, "--json")
    document: dict[str, Any] = told(batchlab(*words))
    assert list(document) == [
        "machine",
        "matrix_product_gflops",
        "bandwidth_gbs",
        "load_before",
        "compile_seconds",
        "workload",
        "rounds",
        "rows",
    ]
    assert list(document["machine"]) == ["cpu", "cores", "threads", "torch", "device"]
    assert document["machine"]["threads"] == 1
    assert document["machine"]["device"] == "cpu"
    assert document["machine"]["cpu"]
    assert (document["workload"], document["rounds"]) == ("digits", 3)
    assert [row["batch_size"] for row in document["rows"]] == [1437, 1, 64]
    for row in document["rows"]:
        assert list(row) == ["batch_size", *SPEEDS, *RATIOS]
        assert all(row[name] > 0 for name in SPEEDS)
        for name in RATIOS:
            assert list(row[name]) == ["median", "low", "high"]
            assert 0 < row[name]["low"] <= row[name]["median"] <= row[name]["high"]


def test_a_table_for_people(batchlab: Call) -> None:
    done = batchlab("bench", "--batch-sizes", "8", "--rounds", 2, "--threads", 1)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("digits on ")
    assert lines[1].split() == ["batch_size", *SPEEDS, *RATIOS]
    assert lines[2].split()[0] == "8"
    assert "of_limit may pass 1" in done.stdout
    assert "measurements" in done.stderr


BAD: dict[str, tuple[tuple[object, ...], tuple[str, ...]]] = {
    "size 0": (("--batch-sizes", "0"), ("--batch-sizes 0", "1 to 1437")),
    "size negative": (("--batch-sizes=-4",), ("--batch-sizes -4", "1 to 1437")),
    "size over the data": (("--batch-sizes", "8,1438"), ("--batch-sizes 1438", "1 to 1437")),
    "size not a number": (("--batch-sizes", "1,x"), ("--batch-sizes", "'1,x'", "whole numbers")),
    "no size": (("--batch-sizes", ""), ("--batch-sizes", "whole numbers")),
    "size twice": (("--batch-sizes", "2,8,2"), ("--batch-sizes 2", "distinct")),
    "rounds": (("--rounds", "0"), ("--rounds", "greater than or equal to 1")),
    "threads": (("--threads", "0"), ("--threads", "greater than or equal to 1")),
    "workload": (("--workload", "cifar"), ("workload", "cifar", "digits", "mnist")),
    "device": (("--device", "tpu"), ("--device", "tpu", "cpu", "cuda")),
    "data": (("--workload", "mnist", "--data-dir", "nowhere"), ("nowhere",)),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str, batchlab: Call) -> None:
    words, parts = BAD[name]
    line = fails(batchlab("bench", *words))
    for part in parts:
        assert part in line


def test_interrupted(batchlab: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> Rates:
        raise KeyboardInterrupt

    monkeypatch.setattr(hardware, "measure", interrupted)
    done = batchlab("bench", "--batch-sizes", "8", "--json")
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr.splitlines()[-1] == "batchlab: stopped; nothing of a comparison is kept"


def test_default_sizes_stop_at_the_data() -> None:
    assert choose_sizes("digits", None) == tuple(size for size in SIZES if size <= 1437)
    assert choose_sizes("mnist", None) == SIZES
    assert max(SIZES) == 4096


def test_a_ratio_is_of_one_round() -> None:
    row = Row(4, naive=[1.0, 2.0, 4.0], eager=[2.0] * 3, batchlab=[3.0, 8.0, 8.0], limit=[8.0] * 3)
    ratios = row.ratios()
    assert ratios["over_naive"] == Spread(3.0, 2.0, 4.0)
    assert ratios["over_eager"] == Spread(4.0, 1.5, 4.0)
    assert ratios["of_limit"] == Spread(1.0, 0.375, 1.0)
    assert row.speeds() == {"naive": 2.0, "eager": 2.0, "batchlab": 8.0, "limit": 8.0}
    assert row.cells()["over_naive"] == "3 (2 to 4)"
