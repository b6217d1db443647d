"""Files elsewhere keep what files here do; damage, absence and no connection are told apart."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch

from batchlab.store import remote
from batchlab.store.checkpoints import Checkpoints
from batchlab.store.files import Files, UnreachableError, temporary_name
from batchlab.store.local import LocalFiles
from batchlab.store.remote import RemoteFiles

KEYS = [f"{k:064x}" for k in range(8)]
EVERYWHERE = ("local", "disk", "memory", "s3")
ELSEWHERE = EVERYWHERE[1:]


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An address of the kind that the test asks for; `local`: a path."""
    if request.param == "s3":
        yield f"{request.getfixturevalue('bucket')}/some/where"
    elif request.param == "memory":
        yield "memory://some/where"
        fsspec.filesystem("memory").store.clear()
    else:
        yield f"{'local://' if request.param == 'disk' else ''}{tmp_path}/some/where"


def files_of(place: str, name: str = "partial") -> Files:
    if "://" in place:
        return RemoteFiles(place, name)
    return LocalFiles(Path(place) / name)


def put(files: Files, name: str, content: bytes) -> None:
    """As a vandal would: in place of what is there."""
    if isinstance(files, RemoteFiles):
        system, path = fsspec.core.url_to_fs(files.where(name))
        system.pipe_file(path, content)
    else:
        Path(files.where(name)).write_bytes(content)


def content_of(files: Files, name: str) -> bytes:
    with files.read(name) as path:
        return path.read_bytes()


def tensors() -> dict[str, torch.Tensor]:
    return {"model/w": torch.arange(12.0).reshape(3, 4), "optimizer/0.step": torch.tensor(7)}


@pytest.mark.parametrize("place", EVERYWHERE, indirect=True)
def test_written_listed_read_and_dropped(place: str, tmp_path: Path) -> None:
    files, again = files_of(place), files_of(place)
    assert files.names() == []
    with pytest.raises(FileNotFoundError), files.read("a"):
        pass
    assert files.stamp("a") is None
    files.drop("a")
    files.write("a", b"one")
    files.write("b", b"")
    before = again.stamps()
    assert before.keys() == {"a", "b"}
    assert before["a"] == again.stamp("a") is not None
    files.write("a", b"another")
    assert again.stamp("a") != before["a"]
    assert again.stamp("b") == before["b"]
    assert content_of(again, "a") == b"another"
    assert content_of(again, "b") == b""
    assert again.names() == ["a", "b"], "nothing is left of the writing"
    files.take("a", tmp_path / "taken")
    assert (tmp_path / "taken").read_bytes() == b"another"
    files.drop("b")
    assert again.names() == []
    assert files_of(place, "checkpoints").names() == []


@pytest.mark.parametrize("place", EVERYWHERE, indirect=True)
def test_checkpoints_are_exact(place: str) -> None:
    checkpoints, again = Checkpoints(files_of(place)), Checkpoints(files_of(place))
    assert checkpoints.load(KEYS[0]) is None
    checkpoints.save(KEYS[0], {"model/w": torch.zeros(1)}, {})
    checkpoints.save(KEYS[0], tensors(), {"status": "running"})
    found = again.load(KEYS[0])
    assert found is not None
    assert found[1] == {"status": "running"}
    assert found[0].keys() == tensors().keys()
    for name, tensor in tensors().items():
        assert found[0][name].dtype == tensor.dtype
        assert torch.equal(found[0][name], tensor)
    assert again.stamps().keys() == {KEYS[0]}
    checkpoints.drop(KEYS[0])
    assert again.load(KEYS[0]) is None
    assert torch.equal(found[0]["model/w"], tensors()["model/w"]), "it was only borrowed"


@pytest.mark.parametrize("place", EVERYWHERE, indirect=True)
def test_texts_without_tensors(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Headers longer and shorter than what is read at first, several at once, damaged ones left."""
    monkeypatch.setattr(remote, "HEAD_BYTES", 400)
    monkeypatch.setattr(remote, "AT_ONCE", 3)
    files = files_of(place)
    checkpoints = Checkpoints(files)
    for k, key in enumerate(KEYS):
        checkpoints.save(key, tensors(), {"name": str(k), "long": "x" * 1000 * (k % 2)})
    for name, content in (("cut", b"\x99"), ("empty", b""), ("odd", b"\xff" * 900)):
        put(files, f"{name}.safetensors", content)
    put(files, "notes.txt", b"mine")
    told = {key: text["name"] for key, text in checkpoints.texts()}
    assert told == {key: str(k) for k, key in enumerate(KEYS)}


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut short": lambda content: content[:-5],
    "cut in its header": lambda content: content[:50],
    "emptied": lambda _: b"",
    "a tensor": lambda content: content[:-8] + b"\1" + content[-7:],
    "a text": lambda content: content.replace(b"running", b"ruining"),
    "no digest": lambda content: content.replace(b"sha256", b"sha25x"),
}


@pytest.mark.parametrize("place", ELSEWHERE, indirect=True)
@pytest.mark.parametrize("what", DAMAGES)
def test_damage_is_named_with_its_address(place: str, what: str) -> None:
    files = files_of(place)
    checkpoints = Checkpoints(files)
    checkpoints.save(KEYS[0], tensors(), {"status": "running"})
    name = f"{KEYS[0]}.safetensors"
    put(files, name, DAMAGES[what](content_of(files, name)))
    with pytest.raises(ValueError, match="damaged") as raised:
        checkpoints.load(KEYS[0])
    assert not isinstance(raised.value, UnreachableError)
    line = str(raised.value)
    assert line.startswith(f"checkpoint {place}/partial/{name}: ")
    assert f"`batchlab store repair --checkpoints {place}` removes it" in line
    assert "\n" not in line


@pytest.mark.parametrize("place", ELSEWHERE, indirect=True)
def test_elsewhere_every_checkpoint_has_a_digest(place: str) -> None:
    """Version 1, which wrote none, knew no addresses."""
    from safetensors.torch import save

    files = files_of(place)
    put_ = save(tensors(), {"status": "finished"})
    files.write(f"{KEYS[0]}.safetensors", put_)
    with pytest.raises(ValueError, match="damaged"):
        Checkpoints(files).load(KEYS[0])


@pytest.mark.parametrize("place", ELSEWHERE, indirect=True)
def test_what_killed_writers_left(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    files = files_of(place)
    Checkpoints(files).save(KEYS[0], tensors(), {})
    put(files, left := temporary_name(f"{KEYS[0]}.safetensors"), b"half")
    put(files, "theirs.tmp", b"another program's")
    whole = f"{KEYS[0]}.safetensors"
    files.sweep()
    assert files.names() == sorted([whole, left, "theirs.tmp"]), "it may be under way"
    monkeypatch.setattr(remote, "STALE_S", -60.0)
    files.sweep()
    assert files.names() == sorted([whole, "theirs.tmp"])


@pytest.mark.parametrize("place", ELSEWHERE, indirect=True)
def test_no_room_for_a_copy(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    files = files_of(place)
    Checkpoints(files).save(KEYS[0], tensors(), {})
    usage = shutil.disk_usage("/")._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UnreachableError, match=r"can't be read .* bytes, and 10 are free"):
        Checkpoints(files).load(KEYS[0])


@pytest.mark.parametrize("place", ["disk"], indirect=True)
def test_where_a_put_is_not_atomic_a_rename_is(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    files = files_of(place)
    files.write("a", b"old")
    system = type(fsspec.filesystem("local"))

    def fails(*_: object) -> None:
        raise OSError("connection lost")

    monkeypatch.setattr(system, "mv", fails)
    with pytest.raises(UnreachableError, match=r"a: can't be written \(connection lost\)"):
        files.write("a", b"new")
    assert content_of(files, "a") == b"old"
    assert files.names() == ["a"]


@pytest.mark.parametrize("place", ["s3"], indirect=True)
def test_what_others_write_is_seen_at_once(place: str) -> None:
    """Their listings must not be remembered, as s3fs does by itself."""
    boto3 = pytest.importorskip("boto3")
    files, name = files_of(place), f"{KEYS[0]}.safetensors"
    bucket, _, prefix = place.removeprefix("s3://").partition("/")
    other = boto3.client("s3")
    files.write("a", b"mine")
    assert files.names() == ["a"]
    other.put_object(Bucket=bucket, Key=f"{prefix}/partial/{name}", Body=b"theirs")
    assert files.names() == [name, "a"]
    before = files.stamp(name)
    other.put_object(Bucket=bucket, Key=f"{prefix}/partial/{name}", Body=b"theirs, again")
    assert files.stamp(name) != before
    assert content_of(files, name) == b"theirs, again"
    other.delete_object(Bucket=bucket, Key=f"{prefix}/partial/{name}")
    assert files.names() == ["a"]
    other.close()


@pytest.mark.parametrize("place", ["s3"], indirect=True)
def test_no_bucket_is_not_an_empty_directory(place: str) -> None:
    assert files_of(place, "nothing yet").names() == []
    with pytest.raises(UnreachableError, match="there is no bucket no-such-bucket"):
        files_of("s3://no-such-bucket/some/where").names()


CALLS: dict[str, Any] = {
    "written": lambda files: files.write("a", b"1"),
    "read": lambda files: content_of(files, "a"),
    "listed": lambda files: files.stamps(),
    "deleted": lambda files: files.drop("a"),
}


def test_nobody_answers(unreachable: str) -> None:
    files = files_of(unreachable)
    for done, call in CALLS.items():
        with pytest.raises(UnreachableError, match=f"can't be {done} .*endpoint") as raised:
            call(files)
        assert str(raised.value).startswith(f"checkpoint {unreachable}/partial")
        assert "\n" not in str(raised.value)


def test_local_leftovers_that_vanish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their writer finishes while they are looked at."""
    (tmp_path / "a.tmp").write_bytes(b"half")
    stat = Path.stat

    def finished(path: Path, **how: Any) -> os.stat_result:
        if path.name == "a.tmp":
            path.unlink()
        return stat(path, **how)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", finished)
        LocalFiles(tmp_path).sweep()
    assert LocalFiles(tmp_path).names() == []
