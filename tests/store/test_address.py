"""What an address may be, and the line that is told, before any training, where it is no use."""

import sys
from pathlib import Path
from typing import Any

import fsspec
import pytest

from batchlab.spec import UserError
from batchlab.store.address import files_at, parse_address, try_address
from batchlab.store.local import LocalFiles
from tests.conftest import Call
from tests.test_cli import TRAIN, fails, told

WHOLE = {
    "/some/where/": "file:///some/where",
    "file:///some/where": "file:///some/where",
    "local:///some/where": "file:///some/where",
    "s3://bucket/a/b//": "s3://bucket/a/b",
    "gs://bucket": "gs://bucket",
}


@pytest.mark.parametrize("text", WHOLE)
def test_one_form(text: str) -> None:
    assert parse_address(text) == WHOLE[text]


def test_a_directory_s_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_address("ck") == f"file://{tmp_path}/ck"
    files = files_at(parse_address("ck"), "partial")
    assert isinstance(files, LocalFiles), "local files do not go through fsspec"
    assert files.where("a") == f"{tmp_path}/ck/partial/a"


BAD = {
    "nothing": ("", ["s3://BUCKET/PREFIX"]),
    "no slashes": ("s3:bucket", ["s3:bucket", "SCHEME://PATH"]),
    "no bucket": ("s3://", ["s3://", "SCHEME://PATH"]),
    "unknown scheme": ("s4://bucket/a", ["s4", "s3, gs"]),
    "a chain": ("simplecache::s3://bucket", ["simplecache::s3://bucket"]),
    "a chain within": ("zip://a.zip::s3://bucket", ["without ::"]),
    "a password": ("sftp://me:secret@host/a", ["sftp://...@host", "password"]),
    "a file's host": ("file://some/where", ["file:///PATH"]),
    "memory": ("memory://a", ["memory://a", "gone when the process ends"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_addresses(name: str, batchlab: Call, tmp_path: Path) -> None:
    text, parts = BAD[name]
    for words in ((*TRAIN, "--store", "s"), ("store", "check", "--store", "s")):
        line = fails(batchlab(*words, "--checkpoints", text))
        assert "--checkpoints" in line
        assert "secret" not in line
        for part in parts:
            assert part in line
    assert not list(tmp_path.iterdir())


def test_a_driver_that_is_missing(batchlab: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    known = sys.modules["fsspec.registry"]  # the package's attribute of that name is a dict
    monkeypatch.setattr(known, "registry", {})
    monkeypatch.setattr(known, "_registry", {})
    line = fails(batchlab(*TRAIN, "--checkpoints", "s3://bucket/a"))
    assert line.startswith("batchlab: --checkpoints s3://bucket/a: Install s3fs")
    assert "pip install 'batchlab[s3]'" in line


def test_what_works_leaves_nothing(bucket: str, tmp_path: Path) -> None:
    for address in (f"{bucket}/a", f"file://{tmp_path}/a"):
        try_address(address)
        assert files_at(address, "partial").names() == []


def test_no_bucket(bucket: str, batchlab: Call, tmp_path: Path) -> None:
    del bucket  # for its server
    address = "s3://no-such-bucket/a"
    line = fails(batchlab(*TRAIN, "--store", "s", "--checkpoints", address))
    assert line.startswith(f"batchlab: --checkpoints {address}: can't be written (")
    assert "bucket does not exist" in line
    assert not list(tmp_path.iterdir()), "something was begun"
    line = fails(batchlab(*TRAIN, "--checkpoints", address, "--dry-run"))
    assert "there is no bucket no-such-bucket" in line


def test_no_credentials(
    changed_s3: str, batchlab: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    line = fails(batchlab(*TRAIN, "--store", "s", "--checkpoints", f"{changed_s3}/a"))
    assert "can't be written (Unable to locate credentials)" in line
    assert not list(tmp_path.iterdir())


def test_no_network(unreachable: str, batchlab: Call, tmp_path: Path) -> None:
    line = fails(batchlab(*TRAIN, "--store", "s", "--checkpoints", unreachable))
    assert "can't be written (Could not connect to the endpoint" in line
    assert not list(tmp_path.iterdir())


def test_only_some_of_the_rights(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing, listing, reading and deleting are each a right of its own."""
    from s3fs import S3FileSystem

    call, left = S3FileSystem._call_s3, 0
    rights = {"put_object": "written", "get_object": "read", "list_objects_v2": "listed"}
    for right, done in (rights | {"delete_object": "deleted"}).items():

        async def most(system: Any, method: str, *of: Any, right: str = right, **how: Any) -> Any:
            if method == right:
                raise PermissionError("Access Denied")
            return await call(system, method, *of, **how)

        with monkeypatch.context() as patch:
            patch.setattr(S3FileSystem, "_call_s3", most)
            with pytest.raises(UserError, match=rf"can't be {done} \(Access Denied\)"):
                try_address(f"{bucket}/a")
        left += right == "delete_object"
        assert len(files_at(f"{bucket}/a", "partial").names()) == left


def test_a_directory_that_can_t_be_written(batchlab: Call, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    line = fails(batchlab(*TRAIN, "--store", "s", "--checkpoints", "file/a"))
    assert f"--checkpoints file://{tmp_path}/file/a: can't be used (Not a directory)" in line
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_dry_run_writes_nothing(batchlab: Call, bucket: str, tmp_path: Path) -> None:
    for address in ("ck", f"{bucket}/a"):
        told(batchlab(*TRAIN, "--store", "s", "--checkpoints", address, "--dry-run", "--json"))
    assert not list(tmp_path.iterdir())
    assert fsspec.filesystem("s3").find(bucket) == []
