"""Checkpoints on a server of S3: kills, two processes, damage; nothing is trained twice or lost."""

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest

from batchlab.backends.base import Interrupted
from batchlab.backends.serial import Serial
from batchlab.engine.train import train_together
from batchlab.jobs import Site
from batchlab.runner import run_all
from batchlab.spec import Spec, UserError
from batchlab.store.address import files_at
from batchlab.store.check import check
from batchlab.store.checkpoints import Checkpoints
from batchlab.store.database import Store
from batchlab.store.files import UnreachableError
from batchlab.store.repair import repair
from tests.conftest import Call
from tests.faults.conftest import Process, Start
from tests.faults.study import content
from tests.faults.test_kills import unrepeated
from tests.faults.test_two_processes import trained
from tests.test_cli import told
from tests.test_runner import START, TRIALS, Silent, digits, phase


@pytest.mark.parametrize("backend", ["serial", "processes"])
def test_killed_and_gone_on_with(
    start: Start, undisturbed: Path, tmp_path: Path, bucket: str, backend: str
) -> None:
    root, address = tmp_path / "store", f"{bucket}/study"

    def begun() -> bool:
        return len(process.told()) >= 3

    def kept() -> bool:
        return begun() and bool(stored(root)) and bool(ends_at(address))

    moments: list[Callable[[], bool]] = [begun, kept, lambda: False]  # at which it is killed
    for comes in moments:
        runs, ends = stored(root), ends_at(address)
        process = start(root, backend, address)
        while process.alive() and not comes():
            time.sleep(0.005)
        workers = process.workers()
        process.signal(signal.SIGKILL)
        for number in (process.number, *workers):
            assert Process(number, process.log).wait(), "a worker works for nobody"
        unrepeated(process, runs, ends)
    assert runs
    assert ends
    assert process.ended() == "finished", process.log.with_suffix(".jsonl.err").read_text()
    assert content(root) == content(undisturbed)
    assert check(root, address) == []
    assert files_at(address, "checkpoints").names()
    assert files_at(address, "partial").names() == []
    assert not (root / "checkpoints").exists()
    assert not (root / "partial").exists()


def ends_at(address: str) -> set[str]:
    return set(Checkpoints(files_at(address, "checkpoints")).stamps())


def stored(root: Path) -> set[str]:
    if not root.exists():
        return set()
    with Store(root) as store:
        return store.keys()


def test_two_processes(start: Start, undisturbed: Path, tmp_path: Path, bucket: str) -> None:
    root, address = tmp_path / "store", f"{bucket}/study"
    both = [start(root, backend, address) for backend in ("serial", "processes")]
    for process in both:
        assert process.wait()
        assert process.ended() == "finished", process.log.with_suffix(".jsonl.err").read_text()
    assert set(trained(*both).values()) == {1}
    assert all(trained(process) for process in both), "one of them did all the work"
    assert content(root) == content(undisturbed)
    assert check(root, address) == []


def run(
    store: Store,
    specs: list[Spec],
    address: str | None,
    stopping: Callable[[], bool] = lambda: False,
) -> int:
    site = Site(store.root, None, "cpu", save_every_s=0.0, address=address)
    return run_all(specs, store, Serial(1), site, progress=Silent(), stopping=stopping)


def test_what_is_under_way(tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked to stop after a few steps, it goes on from those, to the bit."""
    address = f"{bucket}/a"
    asked = iter([False] * 3)
    spec = digits(phase(9, epochs=3))
    begun: list[list[int]] = []

    def heard(*of: Any, **how: Any) -> Any:
        begun.append([state.position.step for state in how["starts"] or []])
        return train_together(*of, **how)

    monkeypatch.setattr("batchlab.jobs.train_together", heard)
    with Store(tmp_path / "halved") as store, Store(tmp_path / "whole") as whole:
        with pytest.raises(Interrupted):
            run(store, [spec], address, lambda: next(asked, True))
        assert len(files_at(address, "partial").names()) == 1
        run(store, [spec], address)
        assert files_at(address, "partial").names() == []
        run(whole, [spec], None)
        assert store.records([spec.key]).equals(whole.records([spec.key]))
    assert begun[0] == begun[2] == []
    assert begun[1][0] > 0, "it began anew"


def test_ends_are_found_where_they_are(tmp_path: Path, bucket: str) -> None:
    """Without the option the end of START is not found, and it is trained once more."""
    address = f"{bucket}/a"
    more = TRIALS.model_copy(update={"draws": 4})
    with Store(tmp_path / "s") as store:
        assert run(store, [TRIALS], address) == 2
        assert run(store, [more], None) == 2
        assert run(store, [TRIALS.model_copy(update={"draws": 5})], address) == 1
    (name,) = files_at(address, "checkpoints").names()
    with Store(tmp_path / "another") as store:  # what it has in common with the first is there
        assert run(store, [more], address) == 2
        assert files_at(address, "checkpoints").names() == [name]
        fsspec.filesystem("s3").mv(
            f"{address}/checkpoints/{name}", f"{address}/checkpoints/{'0' * 64}.safetensors"
        )
        assert run(store, [TRIALS], address) == 2, "under another's name it is nothing"
        assert name in files_at(address, "checkpoints").names()


def test_a_damaged_object(tmp_path: Path, bucket: str, batchlab: Call) -> None:
    address = f"{bucket}/a"
    with Store(tmp_path / "s") as store:
        run(store, [TRIALS], address)
        before = store.records([START.key])
    (name,) = files_at(address, "checkpoints").names()
    place = f"{address}/checkpoints/{name}"
    s3 = fsspec.filesystem("s3")
    whole = s3.cat_file(place)
    s3.pipe_file(place, whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:])
    s3.pipe_file(f"{address}/checkpoints/theirs.txt", b"another program's")
    more = TRIALS.model_copy(update={"draws": 4})
    with Store(tmp_path / "s") as store, pytest.raises(UserError, match="damaged") as raised:
        run(store, [more], address)
    assert f"`batchlab store repair --checkpoints {address}`" in str(raised.value)
    words = ("--store", "s", "--checkpoints", address, "--json")
    done = batchlab("store", "check", *words)
    assert done.returncode == 1
    assert f'"name": "{place}", "problem": "damaged (not what was written)"' in done.stdout
    assert told(batchlab("store", "check", "--store", "s", "--json"))["damage"] == []
    mended = told(batchlab("store", "repair", *words))
    assert [damage["name"] for damage in mended["dropped"]] == [place]
    kept = tmp_path / mended["copy"] / "address" / "checkpoints" / name
    assert kept.read_bytes()[-3] == whole[-3] ^ 1
    assert files_at(address, "checkpoints").names() == ["theirs.txt"]
    assert told(batchlab("store", "check", *words))["damage"] == []
    with Store(tmp_path / "s") as store:
        assert run(store, [more], address) == 2
        assert store.records([START.key]).equals(before)


def test_a_server_that_is_lost(tmp_path: Path, bucket: str, request: pytest.FixtureRequest) -> None:
    """What is finished stays; what can't be saved is told; what can't be read is not damage."""
    address = f"{bucket}/a"
    with Store(tmp_path / "s") as store:
        run(store, [START], address)
        there = store.records([START.key])
        assert request.getfixturevalue("unreachable") == address
        with pytest.raises(UnreachableError, match="can't be"):
            run(store, [digits(phase(300))], address)
        assert store.records([START.key]).equals(there)
    for look in (check, repair):
        with pytest.raises(UnreachableError, match="can't be listed"):
            look(tmp_path / "s", address)
    assert not (tmp_path / "s" / "damaged").exists()


def test_what_may_not_be_read_is_not_damaged(
    tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from s3fs import S3FileSystem

    call = S3FileSystem._call_s3
    with Store(tmp_path / "s") as store:
        run(store, [TRIALS], f"{bucket}/a")

    async def listed_only(system: Any, method: str, *of: Any, **how: Any) -> Any:
        if method == "get_object":
            raise PermissionError("Access Denied")
        return await call(system, method, *of, **how)

    with monkeypatch.context() as patch:
        patch.setattr(S3FileSystem, "_call_s3", listed_only)
        for look in (check, repair):
            with pytest.raises(UnreachableError, match=r"can't be read \(Access Denied\)"):
                look(tmp_path / "s", f"{bucket}/a")
    assert check(tmp_path / "s", f"{bucket}/a") == []
    assert len(files_at(f"{bucket}/a", "checkpoints").names()) == 1


def test_a_save_that_fails_is_the_end(
    batchlab: Call, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a full disk is: one line, status 2; the same command goes on once there is room again."""
    from s3fs import S3FileSystem

    call = S3FileSystem._call_s3
    words = ["train", "--phase", "500:0.01:4", "--threads", "1", "--store", "s"]
    words += ["--save-every", "0", "--checkpoints", f"{bucket}/a"]
    saves = 0

    async def full(system: Any, method: str, *of: Any, **how: Any) -> Any:
        nonlocal saves
        saves += method == "put_object" and how["Key"].endswith(".safetensors")
        if saves > 1:
            raise OSError("Quota exceeded")
        return await call(system, method, *of, **how)

    with monkeypatch.context() as patch:
        patch.setattr(S3FileSystem, "_call_s3", full)
        done = batchlab(*words)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith("batchlab: ")]
    assert len(lines) == 1
    assert f"checkpoint {bucket}/a/partial/" in lines[0]
    assert lines[0].endswith("can't be written (Quota exceeded)")
    assert "Traceback" not in done.stderr
    assert len(files_at(f"{bucket}/a", "partial").names()) == 1, "the save before it"
    assert told(batchlab(*words, "--json"))["status"] == "finished"


def test_time_is_not_spent_in_a_transaction(
    tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one process waits for the network, the others can write."""
    from batchlab.store.remote import RemoteFiles

    asked, stamp = 0, RemoteFiles.stamp
    with Store(tmp_path / "s") as store, Store(tmp_path / "s") as other:

        def slow(files: RemoteFiles, name: str) -> int | str | None:
            nonlocal asked
            asked += 1
            began = time.monotonic()
            other.ask(f'"{asked}"')
            assert time.monotonic() - began < 5, "the store was locked"
            return stamp(files, name)

        monkeypatch.setattr(RemoteFiles, "stamp", slow)
        assert run(store, [TRIALS], f"{bucket}/a") == 2
        assert len(other.requests()) == asked > 0
