"""`batchlab sweep` as a command: tables, JSON, published data, and one line for what is wrong."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from batchlab.documents import alone
from tests.analysis.test_shallue import write
from tests.conftest import Call
from tests.sweep import toy

TARGET = f"{Path(toy.__file__)}:factory"
SHORT = (TARGET, "--batch-sizes", "16,64,256", "--trials", 3, "--seeds", 2, "--workers", 1)


def test_a_sweep_and_its_folder(batchlab: Call, tmp_path: Path) -> None:
    done = batchlab(
        "sweep", *SHORT, "--target", 0.2, "--budget", "0.5epochs", "--json", "--out", "o"
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert [row["batch_size"] for row in told["rows"]] == [16, 64, 256]
    assert all(row["steps"]["low"] <= row["steps"]["effect"] for row in told["rows"])
    assert told["fit"]["critical"]["n"] == 6
    assert "validation loss at most 0.2 within 10000 samples" in told["said"]
    assert "3 batch sizes, 3 trials and 2 seeds each" in done.stderr
    assert (tmp_path / "o" / "sweep.json").exists()
    read = batchlab("sweep", "--read", "o", "--json")
    assert json.loads(read.stdout) == told
    table = batchlab("sweep", "--read", "o").stdout
    assert "critical batch size" in table
    assert "least time at batch size" in table
    other = batchlab("sweep", *SHORT, "--target", 0.3, "--budget", "0.5epochs", "--out", "o")
    assert (other.returncode, other.stdout) == (2, "")
    assert other.stderr == (
        "batchlab: --out o: holds a sweep with target 0.2, not 0.3; give the same, or another "
        "--out\n"
    )


def test_one_sweep_at_a_time(batchlab: Call, tmp_path: Path) -> None:
    words = ("sweep", *SHORT, "--target", 0.2, "--budget", "0.5epochs", "--out", "o")
    (tmp_path / "o").mkdir()
    with alone(tmp_path / "o"):
        second = batchlab(*words)
    assert (second.returncode, second.stdout) == (2, "")
    assert second.stderr.endswith(
        "batchlab: --out o: another command is at work there; wait for its end, or give another "
        "--out\n"
    )
    assert not list((tmp_path / "o").iterdir())
    assert batchlab(*words).returncode == 0


def test_published_searches(batchlab: Call, tmp_path: Path) -> None:
    for size in (8, 32, 128, 512):
        need = round(100 * (1 + 100 / size))
        for trial, times in ((1, 1), (2, 2)):
            write(tmp_path / "d", size, trial, [0.9] * (need * times) + [0.05], every=1)
        write(tmp_path / "d", size, 3, [0.9], status="INFEASIBLE")
    done = batchlab("sweep", "--read", "d", "--target", 0.1, "--json")
    told = json.loads(done.stdout)
    assert [row["steps"]["effect"] for row in told["rows"]] == [1350, 412, 178, 120]
    assert [row["samples"]["effect"] for row in told["rows"]] == [10800, 13184, 22784, 61440]
    assert told["rows"][0]["trials_diverged"] == 1
    assert told["fit"]["critical"]["effect"] == pytest.approx(100, rel=0.02)
    assert told["fastest"] == []
    assert "3 (1 diverged)" in batchlab("sweep", "--read", "d", "--target", 0.1).stdout
    none = json.loads(batchlab("sweep", "--read", "d", "--target", 0.01, "--json").stdout)
    assert none["fit"] is None
    assert none["rows"][3]["steps"] == {"effect": None, "low": 240, "high": None, "n": 0}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "TARGET: digits, mnist, package.module:factory"),
        (("nowhere",), "TARGET 'nowhere': must be digits, mnist"),
        ((TARGET.replace("factory", "broken"),), "broken() raised ValueError: no such data"),
        ((TARGET, "--batch-sizes", "a"), "--batch-sizes 'a': must be whole numbers"),
        ((TARGET, "--batch-sizes", "0,4"), "--batch-sizes: 0 is not from 1 to the 20000 training"),
        ((TARGET, "--batch-sizes", "4,4"), "--batch-sizes: two different ones or more"),
        ((TARGET, "--budget", "many"), "--budget 'many': must be samples (20000), epochs (10e)"),
        ((TARGET, "--budget", "0epochs"), "--budget '0epochs': must be"),
        ((TARGET, "--budget", "60s"), "--budget 60 seconds: must be samples (60000) or epochs"),
        ((TARGET, "--target", "nan"), "--target: Input should be a finite number"),
        ((TARGET, "--target", "100"), "target 100: met before any step"),
        ((TARGET, "--trials", "2"), "--trials"),
        ((TARGET, "--seed", "-1"), "--seed -1: must be a whole number from 0"),
        (("nowhere", "--seed", str(2**64)), f"--seed {2**64}: must be a whole number"),
        ((TARGET, "--device", "tpu"), "--device: unknown 'tpu'; choose from cpu, cuda"),
        ((TARGET, "--metric", "loss"), "--metric: is for --read"),
        ((TARGET, "--read", "."), "--read .: measures nothing; give it or TARGET"),
        (("--read", "nowhere"), "--target: the goal that the error is to be below"),
        (("--read", "nowhere", "--target", "0.1"), "no folder nowhere"),
    ],
)
def test_errors_are_one_line(batchlab: Call, words: tuple[str, ...], says: str) -> None:
    done = batchlab("sweep", *words, *(() if "--read" in words else ("--workers", 1)))
    assert (done.returncode, done.stdout) == (2, "")
    line = done.stderr.splitlines()[-1]
    assert says in line
    assert line.startswith("batchlab: ")
    assert not list(Path("out").rglob("*.json*"))


@pytest.mark.parametrize(
    "option",
    [
        *("--batch-sizes 8,16", "--trials 5", "--seeds 2", "--budget 9epochs", "--seed 0"),
        *("--workers 1", "--device cpu", "--data-dir d", "--out o"),
    ],
)
def test_what_is_read_is_not_measured(batchlab: Call, option: str) -> None:
    done = batchlab("sweep", "--read", "o", *option.split())
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"batchlab: --read o: measures nothing; give it or {option}\n"


def test_budgets_in_epochs_and_samples(batchlab: Call) -> None:
    for budget, out in (("10000", "a"), ("0.5 epochs", "b")):
        done = batchlab("sweep", *SHORT, "--target", 0.2, "--budget", budget, "--out", out)
        assert "within 10000 samples" in done.stdout
    lines = [Path(out, "batch-0000064.jsonl").read_text().splitlines() for out in "ab"]
    steps = [[json.loads(line)["steps"] for line in rows] for rows in lines]
    assert steps[0] == steps[1]


def test_a_sweep_that_was_killed_goes_on(batchlab: Call, tmp_path: Path) -> None:
    words = [*map(str, SHORT), "--target", "0.2", "--budget", "0.5epochs", "--out"]
    command = [sys.executable, "-m", "batchlab", "sweep", *words, "cut"]
    path = tmp_path / "cut" / "batch-0000016.jsonl"
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL) as process:
        while not path.exists() and process.poll() is None:
            time.sleep(0.01)
        process.kill()
    assert path.exists()
    assert process.returncode != 0
    for out in ("cut", "whole"):
        assert batchlab("sweep", *words, out).returncode == 0
    rows = [
        [
            {k: v for k, v in json.loads(line).items() if k not in ("seconds", "looking_s")}
            for size in (16, 64, 256)
            for line in (tmp_path / out / f"batch-{size:07d}.jsonl").read_text().splitlines()
        ]
        for out in ("cut", "whole")
    ]
    assert rows[0] == rows[1]
