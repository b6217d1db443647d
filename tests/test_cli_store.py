"""`batchlab store` from the command line, and what a user sees where the disk is full."""

import errno
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from batchlab.archive import Request
from batchlab.spec import UserError
from batchlab.store.checkpoints import Checkpoints
from batchlab.store.database import FILE, Run, Store
from batchlab.studies import STUDIES
from batchlab.workloads import workload
from tests.conftest import Call
from tests.store.test_check import KEYS, made
from tests.test_cli import fails, told


def test_check_and_repair(batchlab: Call, tmp_path: Path) -> None:
    made(tmp_path / "s")
    assert told(batchlab("store", "check", "--store", "s", "--json")) == {
        "store": "s",
        "damage": [],
    }
    db = sqlite3.connect(tmp_path / "s" / FILE)
    with db:
        db.execute("UPDATE record SET value = 3 WHERE run = 2")
    db.close()
    done = batchlab("store", "check", "--store", "s", "--json")
    assert done.returncode == 1
    (damage,) = json.loads(done.stdout)["damage"]
    assert damage == {
        "kind": "run",
        "name": KEYS[1],
        "problem": "its records are not what was written",
    }
    shown = batchlab("store", "check", "--store", "s")
    assert (shown.returncode, shown.stdout.count("\n")) == (1, 2)
    mended = told(batchlab("store", "repair", "--store", "s", "--json"))
    assert mended["runs"] == 5
    assert mended["dropped"] == [damage]
    assert (tmp_path / mended["copy"] / FILE).exists()
    assert batchlab("store", "check", "--store", "s").returncode == 0
    assert "nothing was damaged" in batchlab("store", "repair", "--store", "s").stdout


def test_trials_whose_start_was_dropped(batchlab: Call, tmp_path: Path) -> None:
    words = ["trials", "--after", "500:0.01:1", "--batch-sizes", "8,16", "--trials", "4"]
    words += ["--samples", "64", "--store", "s", "--json"]
    rows = told(batchlab(*words))
    db = sqlite3.connect(tmp_path / "s" / FILE)
    with db:
        db.execute("UPDATE record SET value = 3")  # of the training run: trials have none
    db.close()
    assert told(batchlab("store", "repair", "--store", "s", "--json"))["runs"] == 1
    assert told(batchlab(*words)) == rows


def test_findings_of_what_was_never_run(batchlab: Call, tmp_path: Path) -> None:
    request = Request(protocol=workload("mnist").protocol, seeds=1, studies=tuple(STUDIES))
    with Store(tmp_path / "s") as store:
        store.ask(request.canonical())
    found = told(batchlab("findings", "--store", "s", "--json"))
    assert {finding["verdict"] for finding in found} == {"inconclusive"}


@pytest.mark.parametrize("what", ["check", "repair"])
def test_no_store_there(batchlab: Call, what: str) -> None:
    assert "no store there" in fails(batchlab("store", what, "--store", "none"))


def test_a_damaged_store_is_one_line(batchlab: Call, tmp_path: Path) -> None:
    made(tmp_path / "s")
    content = (tmp_path / "s" / FILE).read_bytes()
    (tmp_path / "s" / FILE).write_bytes(content[: len(content) // 3])
    for words in (("runs",), ("findings",)):
        assert "store repair" in fails(batchlab(*words, "--store", "s", "--json"))


FULL = """
import resource, signal, sys
from pathlib import Path
from batchlab.cli import main
from batchlab.store.database import FILE
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)), resource.RLIM_INFINITY))
main()
"""


def test_a_file_that_can_t_grow(tmp_path: Path) -> None:
    """As on a full disk: one line, and the store is as it was."""
    made(tmp_path / "s")
    limit = (tmp_path / "s" / FILE).stat().st_size
    words = ("train", "--phase", "500:0.01:40", "--store", "s", "--json")
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(min(limit, 40_000)), *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"NUMBA_DISABLE_JIT": "1"},
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("batchlab:")]
    assert done.returncode == 2, done.stderr
    assert len(lines) == 1
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    with Store(tmp_path / "s", create=False) as store:
        assert store.keys() == set(KEYS)


def test_a_full_disk_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store(made(tmp_path / "s")) as store:
        (pages,) = store.connection.db.execute("PRAGMA page_count").fetchone()
        store.connection.db.execute(f"PRAGMA max_page_count = {pages}")
        run = Run("f" * 64, "train", "x" * 10**6, "finished", 1, 0.5, "{}")
        with pytest.raises(UserError, match="the disk is full; make room"):
            store.add(run)
        assert store.keys() == set(KEYS)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    checkpoints = Checkpoints(tmp_path / "s" / "partial")
    path = tmp_path / "s" / "partial" / f"{KEYS[1]}.safetensors"
    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left"):
        checkpoints.save(KEYS[1], {"w": torch.zeros(3)}, {})
    assert path.read_bytes() == before
    assert checkpoints.others() == []


def test_a_store_that_another_has_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchlab.store.connection.BUSY_S", 0.01)
    root = made(tmp_path / "s")
    other = sqlite3.connect(root / FILE, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(UserError, match="kept it locked"):
        Store(root)
    with Store(root, create=False) as store:  # to read it nobody has to wait
        assert store.keys() == set(KEYS)
    other.close()


def test_a_store_on_a_medium_that_can_t_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = made(tmp_path / "s")
    connect = sqlite3.connect

    def refused(path: object, **how: object) -> object:
        """What SQLite says of a directory in which it can't make its log."""
        if "uri" in how:
            return connect(path, **how)  # type: ignore[call-overload]
        return connect(f"file:{root / 'none' / FILE}?mode=ro", uri=True)

    monkeypatch.setattr("batchlab.store.connection.sqlite3.connect", refused)
    with pytest.raises(UserError, match="is it writable"):
        Store(root)
