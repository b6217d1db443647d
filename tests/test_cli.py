"""The command line as users meet it: JSON on standard output, one line for a user's error."""

import gzip
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from batchlab.spec import CONVENTIONS
from batchlab.store.database import FILE, VERSION, Store
from tests.conftest import Call, Done

ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "BATCHLAB_DATA_DIR"}


def fails(done: Done) -> str:
    """The one line that a user's error gets."""
    assert done.returncode == 2, done
    assert done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


def told(done: Done) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


TRAIN = ("train", "--workload", "digits", "--phase", "128:0.01:3")


def test_train_tells_the_run(batchlab: Call) -> None:
    run = told(batchlab(*TRAIN, "--seed", 3, "--store", "s", "--json"))
    assert run["status"] == "finished"
    assert run["steps"] == 36
    assert run["spec"]["seed"] == 3
    assert 0.5 < run["test_accuracy"] < 1
    assert 0.3 < run["W"] < 3
    assert 19 < run["oW"] < 20.5
    assert len(run["cos"]) == 3
    for name in ("key", "train_accuracy", "test_loss", "train_loss", "b", "ob", "seconds"):
        assert run[name] is not None
    assert told(batchlab("runs", "--store", "s", "--json")) == [run]


def test_steps_cut_the_schedule(batchlab: Call) -> None:
    assert told(batchlab(*TRAIN, "--steps", 7, "--json"))["steps"] == 7


def test_phases_follow_one_another(batchlab: Call) -> None:
    run = told(batchlab(*TRAIN, "--phase", "700:0.1:1", "--json"))
    assert run["steps"] == 36 + 3


def test_a_table_for_people(batchlab: Call) -> None:
    done = batchlab(*TRAIN)
    assert done.returncode == 0
    assert "test_accuracy" in done.stdout


def test_trials_tell_every_size_and_convention(batchlab: Call) -> None:
    words = ("trials", "--after", "128:0.01:1", "--batch-sizes", "16,3,64", "--trials", 4)
    rows = told(batchlab(*words, "--samples", 64, "--json"))
    assert [(r["batch_size"], r["convention"]) for r in rows] == [
        (b, c) for c in CONVENTIONS for b in (3, 16, 64)
    ]
    for row in rows:
        assert row["n"] == 4
        assert row["norm_mean"] > 0
        assert row["exponent_low"] <= row["exponent"] <= row["exponent_high"]
        assert row["layer"].endswith("weight")
    only = told(batchlab(*words, "--samples", 64, "--convention", "sum-last", "--json"))
    assert {r["convention"] for r in only} == {"sum-last"}
    flat = [r for r in rows if r["convention"] == "sum-frozen"]
    assert flat[0]["norm_mean"] == pytest.approx(flat[-1]["norm_mean"], rel=1e-5)


def test_a_diverging_run_is_recorded_and_the_rest_goes_on(batchlab: Call) -> None:
    run = told(batchlab("train", "--phase", "8:100:30", "--store", "s", "--json"))
    assert run["status"] == "diverged"
    assert 1 <= run["steps"] < 5400
    assert run["test_accuracy"] is None
    assert run["cos"] is None
    assert told(batchlab(*TRAIN, "--store", "s", "--json"))["status"] == "finished"
    rows = told(batchlab("runs", "--store", "s", "--json"))
    assert [row["status"] for row in rows] == ["diverged", "finished"]
    assert "diverged" in batchlab("runs", "--store", "s").stdout
    words = ("trials", "--after", "8:100:30", "--batch-sizes", "1", "--store", "s")
    assert "diverged at step" in fails_after_progress(batchlab(*words))


def fails_after_progress(done: Done) -> str:
    assert done.returncode == 2, done
    assert "Traceback" not in done.stderr
    return done.stderr.strip().splitlines()[-1]


BAD: dict[str, tuple[tuple[object, ...], tuple[str, ...]]] = {
    "batch size 0": (("train", "--phase", "0:0.01:1"), ("batch_size", "greater than or equal")),
    "batch size negative": (("train", "--phase=-8:0.01:1"), ("batch_size",)),
    "batch size not a number": (
        ("train", "--phase", "big:0.01:1"),
        ("'big:0.01:1'", "B:LR:EPOCHS"),
    ),
    "batch size of nan": (("train", "--phase", "nan:0.01:1"), ("B:LR:EPOCHS",)),
    "batch size larger than the data": (
        ("train", "--phase", "1438:0.01:1"),
        ("--phase: ", "1438", "1437"),
    ),
    "phase malformed": (("train", "--phase", "64:0.01"), ("--phase '64:0.01'", "B:LR:EPOCHS")),
    "no phase": (("train",), ("--phase",)),
    "rate negative": (("train", "--phase", "8:-0.1:1"), ("learning_rate",)),
    "rate zero": (("train", "--phase", "8:0:1"), ("learning_rate",)),
    "rate nan": (("train", "--phase", "8:nan:1"), ("learning_rate", "finite")),
    "rate inf": (("train", "--phase", "8:inf:1"), ("learning_rate", "finite")),
    "rate over single precision": (
        ("train", "--phase", "8:1e39:1"),
        ("--phase '8:1e39:1'", "learning_rate: must be at most 1e+38 (got 1e+39)"),
    ),
    "epochs zero": (("train", "--phase", "8:0.1:0"), ("epochs",)),
    "workload": ((*TRAIN, "--workload", "cifar"), ("--workload: ", "cifar", "digits", "mnist")),
    "optimizer": ((*TRAIN, "--optimizer", "lion"), ("lion", "sgd", "adam", "adamw")),
    "momentum": ((*TRAIN, "--momentum", "1.5"), ("--momentum: ",)),
    "momentum of adam": ((*TRAIN, "--momentum", ".9", "--optimizer", "adam"), ("--momentum: ",)),
    "weight decay": ((*TRAIN, "--weight-decay", "-1"), ("--weight-decay: ",)),
    "seed": ((*TRAIN, "--seed", "-1"), ("--seed",)),
    "seed not a number": ((*TRAIN, "--seed", "x"), ("--seed", "integer")),
    "steps": ((*TRAIN, "--steps", "0"), ("--steps",)),
    "backend": ((*TRAIN, "--backend", "abacus"), ("abacus", "serial", "processes", "ray")),
    "backend of a report": (("reproduce", "--backend", "abacus", "--out", "new"), ("--backend",)),
    "workers": ((*TRAIN, "--workers", "0"), ("--workers",)),
    "workers of one process": ((*TRAIN, "--workers", "2"), ("--workers 2", "processes")),
    "seconds between saves": ((*TRAIN, "--save-every", "inf"), ("--save-every inf", "finite")),
    "device": ((*TRAIN, "--device", "tpu"), ("tpu", "cpu", "cuda")),
    "option": ((*TRAIN, "--sede", "1"), ("--sede",)),
    "study": (("reproduce", "--study", "weather"), ("weather", "batch-size", "gradient")),
    "scale": (("reproduce", "--scale", "huge"), ("huge", "smoke", "article")),
    "seeds": (("reproduce", "--seeds", "0"), ("--seeds",)),
    "matmul": (("reproduce", "--matmul", "fp8"), ("fp8", "float32", "bf16")),
    "tf32 on a CPU": (("reproduce", "--matmul", "tf32"), ("--matmul tf32", "cuda", "bf16")),
    "matmul of a run": ((*TRAIN, "--matmul", "half"), ("--matmul", "float32", "bf16")),
    "too few trials": (("reproduce", "--trials", "3"), ("--trials", "4")),
    "trial sizes": (
        ("trials", "--after", "8:0.1:1", "--batch-sizes", "1,x"),
        ("--batch-sizes", "'1,x'"),
    ),
    "trial size 0": (("trials", "--after", "8:0.1:1", "--batch-sizes", "0"), ("--batch-sizes: ",)),
    "trial size twice": (
        ("trials", "--after", "8:0.1:1", "--batch-sizes", "2,2"),
        ("--batch-sizes: ", "distinct"),
    ),
    "trial size over the samples": (
        ("trials", "--after", "8:0.1:1", "--batch-sizes", "2000"),
        ("--batch-sizes: ", "2000", "1024"),
    ),
    "samples over the data": (
        ("trials", "--after", "8:0.1:1", "--batch-sizes", "1", "--samples", "5000"),
        ("--samples: ", "5000", "1437"),
    ),
    "samples of a detailed draw": (
        ("trials", "--after", "8:0.1:1", "--batch-sizes", "1", "--samples", "3", "--detailed", "1"),
        ("--samples: ", "4 or more"),
    ),
    "start malformed": (
        ("trials", "--after", "8:0.1", "--batch-sizes", "1"),
        ("--after '8:0.1'", "B:LR:EPOCHS"),
    ),
    "start larger than the data": (
        ("trials", "--after", "1438:0.1:1", "--batch-sizes", "1"),
        ("--after: ", "1438", "1437"),
    ),
    "tensors of before": (
        ("trials", "--after", "8:0.1:1", "--batch-sizes", "1", "--keep-tensors", "taken"),
        ("--keep-tensors taken", "index.json is there already"),
    ),
    "tensors in a file": (
        ("trials", "--after", "8:0.1:1", "--batch-sizes", "1", "--keep-tensors", "file"),
        ("--keep-tensors file", "no directory"),
    ),
    "convention": (
        ("trials", "--after", "8:0.1:1", "--batch-sizes", "1", "--convention", "median"),
        ("median", "sum-stepping"),
    ),
    "data directory": (
        (*TRAIN, "--workload", "mnist", "--data-dir", "nowhere"),
        ("nowhere",),
    ),
    "data directory of a report": (
        ("reproduce", "--workload", "mnist", "--data-dir", "nowhere", "--out", "new"),
        ("nowhere",),
    ),
    "data file altered": (
        (*TRAIN, "--workload", "mnist", "--data-dir", "altered"),
        ("train-images-idx3-ubyte", "SHA-256"),
    ),
    "data file truncated": (
        (*TRAIN, "--workload", "mnist", "--data-dir", "truncated"),
        ("train-images-idx3-ubyte.gz",),
    ),
    "no store": (("runs", "--store", "nowhere"), ("nowhere", "no store there")),
    "no store for findings": (("findings", "--store", "nowhere"), ("nowhere",)),
    "store not writable": ((*TRAIN, "--store", "file/store"), ("file/store", "not writable")),
    "store not a store": ((*TRAIN, "--store", "full"), ("full", "not a store")),
    "store of a newer version": ((*TRAIN, "--store", "newer"), ("newer", "upgrade")),
    "store damaged": ((*TRAIN, "--store", "damaged"), ("damaged",)),
    "out not writable": (("reproduce", "--out", "file/out"), ("file/out",)),
    "command": (("explode",), ("explode",)),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str, tmp_path: Path, batchlab: Call) -> None:
    words, parts = BAD[name]
    if words[0] in ("train", "trials") and "--store" not in words:
        words += ("--store", "new")
    (tmp_path / "file").write_text("")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "index.json").write_text("{}")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / FILE).write_text("no database" * 100)
    for folder, file, content in (
        ("altered", "train-images-idx3-ubyte", b"\0\0\x08\x03" + bytes(100)),
        ("truncated", "train-images-idx3-ubyte.gz", gzip.compress(bytes(1000))[:-9]),
    ):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / file).write_bytes(content)
    Store(tmp_path / "newer").close()
    with sqlite3.connect(tmp_path / "newer" / FILE) as db:
        db.execute(f"PRAGMA user_version = {VERSION + 1}")
    db.close()
    before = everything(tmp_path)
    line = fails(batchlab(*words))
    for part in parts:
        assert part in line
    assert everything(tmp_path) == before, "something was half-written"


def everything(root: Path) -> dict[Path, bytes | None]:
    """All files with their content, and all directories."""
    return {path: path.read_bytes() if path.is_file() else None for path in root.rglob("*")}


def test_what_can_t_be_had_is_not_asked_for(tmp_path: Path, batchlab: Call) -> None:
    told(batchlab(*TRAIN, "--store", "s", "--json"))
    words = ("reproduce", "--workload", "mnist", "--data-dir", "nowhere", "--store", "s")
    assert "nowhere" in fails(batchlab(*words, "--out", "new"))
    assert not (tmp_path / "new").exists()
    with Store(tmp_path / "s", create=False) as store:
        assert store.requests() == []


DRY: dict[str, tuple[tuple[object, ...], int]] = {
    "train": ((*TRAIN, "--store", "s"), 1),
    "trials": (("trials", "--after", "128:0.01:3", "--batch-sizes", "8,16", "--store", "s"), 2),
    "reproduce": (("reproduce", "--scale", "smoke", "--seeds", 1, "--out", "o"), 21),
}


@pytest.mark.parametrize("name", DRY)
def test_a_dry_run_prints_the_plan_and_stops(name: str, tmp_path: Path, batchlab: Call) -> None:
    words, runs = DRY[name]
    plan = told(batchlab(*words, "--dry-run", "--json"))["plan"]
    assert (plan["runs"], plan["stored"]) == (runs, 0)
    assert plan["epochs_asked"] >= plan["epochs_trained"] > 0
    assert plan["steps_trained"] == sum(s["steps"] for s in plan["stretches"])
    assert plan["seconds_estimated"] > 0
    done = batchlab(*words, "--dry-run")
    assert done.stdout.startswith(f"plan: {runs:,} run")
    assert not list(tmp_path.iterdir()), "something was written"


def test_the_plan_is_told_before_it_runs_and_leaves_out_what_is_stored(batchlab: Call) -> None:
    done = batchlab(*TRAIN, "--store", "s", "--json")
    assert done.stderr.startswith("plan: 1 run, 3 epochs asked, 3 trained, about ")
    longer = ("train", "--phase", "128:0.01:3", "--phase", "64:0.01:2", "--store", "s")
    assert told(batchlab(*TRAIN, "--store", "s", "--dry-run", "--json"))["plan"]["stored"] == 1
    assert "nothing to run; 1 stored run left out" in batchlab(*TRAIN, "--store", "s").stderr
    before = sorted(p.name for p in Path("s").rglob("*"))
    plan = told(batchlab(*longer, "--dry-run", "--json"))["plan"]
    assert [s["steps"] for s in plan["stretches"]] == [36 + 46]  # a leaf's end is not kept
    assert sorted(p.name for p in Path("s").rglob("*")) == before


def test_help_and_no_words(batchlab: Call) -> None:
    for words in ((), ("--help",)):
        done = batchlab(*words)
        assert done.returncode == 0
        for command in ("reproduce", "train", "trials", "bench", "runs", "findings"):
            assert command in done.stdout


def _records(store: Path) -> list[tuple[Any, ...]]:
    db = sqlite3.connect(store / FILE)
    rows = db.execute(
        "SELECT step, epoch, samples, name, layer, value FROM record ORDER BY rowid"
    ).fetchall()
    db.close()
    return rows


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("backend", ["serial", "processes"])
def test_interrupted_and_resumed_to_the_bit(
    tmp_path: Path, how: int, backend: str, batchlab: Call
) -> None:
    words = ["train", "--phase", "2:0.01:150", "--seed", "1", "--threads", "1", "--json"]
    whole = told(batchlab(*words, "--store", "whole"))
    command = [*words, "--backend", backend, "--workers", "1", "--store", "halved"]
    command += ["--save-every", "0.2"]
    halves = 0
    for _ in range(2):
        process = subprocess.Popen(
            [sys.executable, "-m", "batchlab", *command],
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=ENVIRONMENT,
            start_new_session=True,
        )
        partial = tmp_path / "halved" / "partial"
        seen = set(partial.glob("*")) if partial.exists() else set()
        stamp = max((p.stat().st_mtime_ns for p in seen), default=0)
        waited = time.monotonic() + 60
        while time.monotonic() < waited and process.poll() is None:
            stamps = [p.stat().st_mtime_ns for p in partial.glob("*.safetensors")]
            if stamps and max(stamps) > stamp:
                break
            time.sleep(0.02)
        if process.poll() is None:
            halves += 1
            if how == signal.SIGINT:
                process.send_signal(how)
            else:
                os.killpg(process.pid, how)
        status = process.wait(60)
        if how == signal.SIGINT and halves:
            assert status == 130
    assert halves, "the run was never interrupted"
    again = told(batchlab(*command))
    assert {k: v for k, v in again.items() if k != "seconds"} == {
        k: v for k, v in whole.items() if k != "seconds"
    }
    assert _records(tmp_path / "halved") == _records(tmp_path / "whole")
    assert not list((tmp_path / "halved" / "partial").glob("*"))
