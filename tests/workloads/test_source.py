import gzip
import socket
from collections.abc import Iterator
from pathlib import Path

import pooch
import pytest

from batchlab.spec import UserError
from batchlab.workloads.source import Source, data_dir_from_environment
from tests.workloads.fake import files, served, source, write

FILE = "train-labels-idx1-ubyte"
CONTENT = files()[FILE]
PACKED = gzip.compress(CONTENT)
HERE = source({FILE: CONTENT})


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, no data directory, no proxy on the way to the loopback."""
    monkeypatch.delenv("BATCHLAB_DATA_DIR", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / "cache" / project)
    return tmp_path / "cache" / "batchlab" / "mnist"


@pytest.fixture
def dead() -> Iterator[str]:
    """The address of a port that nobody listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}/"


def refused(where: Source, data_dir: Path | None) -> str:
    with pytest.raises(UserError) as raised:
        where.read(FILE, data_dir)
    message = str(raised.value)
    assert "\n" not in message
    return message


def test_the_environment_is_read_where_no_folder_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert data_dir_from_environment() is None
    monkeypatch.setenv("BATCHLAB_DATA_DIR", "")
    assert data_dir_from_environment() is None
    monkeypatch.setenv("BATCHLAB_DATA_DIR", str(tmp_path))
    assert data_dir_from_environment() == tmp_path
    write(tmp_path, {FILE: CONTENT})
    assert HERE.read(FILE, None) == CONTENT
    (tmp_path / "empty").mkdir()
    assert f"data directory ({tmp_path / 'empty'})" in refused(HERE, tmp_path / "empty")


@pytest.mark.parametrize("folder", ["", "mnist"])
@pytest.mark.parametrize("name", [FILE, "train-labels.idx1-ubyte"])
@pytest.mark.parametrize("packed", [True, False])
def test_a_folder_may_hold_it_in_many_ways(
    tmp_path: Path, folder: str, name: str, packed: bool
) -> None:
    if packed:
        write(tmp_path / folder, {name: CONTENT})
    else:
        write(tmp_path / folder, {name: CONTENT}, pack=bytes, suffix="")
    assert HERE.read(FILE, tmp_path) == CONTENT


def test_a_folder_must_be_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing, file = tmp_path / "missing", tmp_path / "file"
    file.touch()
    assert refused(HERE, missing).startswith(f"--data-dir {missing}: does not exist")
    assert refused(HERE, file).startswith(f"--data-dir {file}: is not a directory")
    monkeypatch.setenv("BATCHLAB_DATA_DIR", str(missing))
    assert refused(HERE, None).startswith(f"BATCHLAB_DATA_DIR {missing}: does not exist")


@pytest.mark.parametrize(
    ("raw", "wrong"),
    [
        (PACKED[:-9], "cut short, the gzip stream has no end"),
        (PACKED[:5], "cut short, the gzip stream has no end"),
        (CONTENT, "not gzip, or damaged"),
        (b"<html>404</html>", "not gzip, or damaged"),
        (PACKED[:-1] + b"x", "not gzip, or damaged"),
        (PACKED[:10] + b"\xff" * 20, "not gzip, or damaged"),
        (gzip.compress(CONTENT[:-1]), f"of {len(CONTENT) - 1} bytes"),
        (gzip.compress(CONTENT[:-1] + b"x"), "wrong SHA-256"),
        (b"", "wrong SHA-256"),
    ],
    # Names of our own: gzip's bytes have the time in them, and a test's name must not.
    ids=["end", "header", "raw", "page", "length", "stream", "shorter", "altered", "empty"],
)
def test_a_bad_file_of_the_users_is_told_and_kept(tmp_path: Path, raw: bytes, wrong: str) -> None:
    path = tmp_path / f"{FILE}.gz"
    path.write_bytes(raw)
    message = refused(HERE, tmp_path)
    assert message.startswith(f"{path}: ")
    assert wrong in message
    assert HERE.sha256[FILE] in message
    assert path.read_bytes() == raw


def test_an_altered_raw_file_is_told(tmp_path: Path) -> None:
    write(tmp_path, {FILE: CONTENT[:-1]}, pack=bytes, suffix="")
    assert "wrong SHA-256" in refused(HERE, tmp_path)


def test_an_unreadable_file_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    write(tmp_path, {FILE: CONTENT})
    monkeypatch.setattr(Path, "read_bytes", forbidden)
    assert "cannot be read ([Errno 13] Permission denied" in refused(HERE, tmp_path)


def test_the_cache_is_used_without_a_mirror(cache: Path, tmp_path: Path) -> None:
    write(cache, {FILE: CONTENT})
    assert HERE.read(FILE, tmp_path) == CONTENT


def test_a_download_is_cached(cache: Path) -> None:
    with served({f"/{FILE}.gz": PACKED}) as (address, asked):
        where = source({FILE: CONTENT}, mirrors=(f"{address}/",))
        assert where.read(FILE, None) == CONTENT
        assert where.read(FILE, None) == CONTENT
    assert asked == [f"/{FILE}.gz"]
    assert [path.name for path in cache.iterdir()] == [f"{FILE}.gz"]


@pytest.mark.parametrize(
    "bad",
    [b"garbage", PACKED[:-4], gzip.compress(b"another"), None],
    ids=["garbage", "short", "another", "none"],
)
def test_a_bad_mirror_leaves_it_to_the_next(cache: Path, bad: bytes | None) -> None:
    answers = {f"/good/{FILE}.gz": PACKED}
    if bad is not None:
        answers[f"/bad/{FILE}.gz"] = bad
    with served(answers) as (address, asked):
        where = source({FILE: CONTENT}, mirrors=(f"{address}/bad/", f"{address}/good/"))
        assert where.read(FILE, None) == CONTENT
    assert asked == [f"/bad/{FILE}.gz", f"/good/{FILE}.gz"]
    assert [path.name for path in cache.iterdir()] == [f"{FILE}.gz"]


def test_a_bad_cached_file_is_downloaded_again(cache: Path) -> None:
    write(cache, {FILE: b"altered"})
    with served({f"/{FILE}.gz": PACKED}) as (address, _):
        where = source({FILE: CONTENT}, mirrors=(f"{address}/",))
        assert where.read(FILE, None) == CONTENT
    assert gzip.decompress((cache / f"{FILE}.gz").read_bytes()) == CONTENT


def test_a_bad_cached_file_that_stays_is_told(cache: Path) -> None:
    (cache / f"{FILE}.gz").mkdir(parents=True)  # neither readable nor deletable as a file
    assert refused(HERE, None).startswith(f"{cache / FILE}.gz: ")


def test_nowhere_names_every_place(cache: Path, tmp_path: Path, dead: str) -> None:
    with served({f"/bad/{FILE}.gz": b"garbage"}) as (address, _):
        mirrors = (dead, f"{address}/bad/", f"{address}/none/")
        message = refused(source({FILE: CONTENT}, mirrors=mirrors), tmp_path)
    assert f"mnist: {FILE} is not in the data directory ({tmp_path})" in message
    assert f"cache ({cache})" in message
    assert f"{dead} (ConnectionError)" in message
    assert f"{address}/bad/ (not gzip, or damaged" in message
    assert f"{address}/none/ (HTTP 404)" in message
    assert "--workload digits" in message
    assert list(cache.iterdir()) == []
    without = refused(source({FILE: CONTENT}, mirrors=(dead,)), None)
    assert "none given: --data-dir or BATCHLAB_DATA_DIR" in without


def test_a_cache_that_cannot_be_made_is_told(tmp_path: Path, dead: str) -> None:
    (tmp_path / "cache").touch()
    assert str(tmp_path / "cache") in refused(source({FILE: CONTENT}, mirrors=(dead,)), None)


def test_downloading_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with served({f"/{FILE}.gz": PACKED}) as (address, _):
        source({FILE: CONTENT}, mirrors=(f"{address}/",)).read(FILE, None)
    assert capfd.readouterr() == ("", "")
