"""Claims: one owner at a time, gone with it; and what counts as gone."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from batchlab.store import owners
from batchlab.store.claims import Claim, Claims
from batchlab.store.database import Store
from batchlab.store.owners import Owner, living

TWO = Iterator[tuple[Claims, Claims]]


@pytest.fixture
def two(tmp_path: Path) -> TWO:
    Store(tmp_path).close()
    with Claims(tmp_path) as mine, Claims(tmp_path) as theirs:
        yield mine, theirs


def never(_: Claim) -> bool:
    return False


def yes() -> bool:
    return True


def names(against: list[Claim] | None) -> list[str]:
    assert against is not None
    return [claim.name for claim in against]


def test_one_owner_at_a_time(two: tuple[Claims, Claims]) -> None:
    mine, theirs = two
    assert mine.take({"a": {}, "b": {}}, never, yes) == []
    against = theirs.take({"b": {}, "c": {}}, never, yes)
    assert names(against) == ["b"]
    assert against is not None
    assert theirs.held(against)
    assert theirs.take({"c": {}}, never, yes) == []
    mine.give_back(["b"])
    assert not theirs.held(against)
    assert theirs.take({"b": {}}, never, yes) == []
    assert names(mine.take({"b": {}}, never, yes)) == ["b"]


def test_none_of_several_where_one_is_taken(two: tuple[Claims, Claims]) -> None:
    mine, theirs = two
    mine.take({"a": {}}, never, yes)
    theirs.take({"a": {}, "b": {}}, never, yes)
    assert mine.take({"b": {}}, never, yes) == []


def test_what_is_done_is_not_claimed(two: tuple[Claims, Claims]) -> None:
    mine, theirs = two
    assert mine.take({"a": {}}, never, lambda: False) is None
    assert theirs.take({"a": {}}, never, yes) == []


def test_work_that_clashes_under_another_name(two: tuple[Claims, Claims]) -> None:
    mine, theirs = two
    mine.take({"a": {"family": 1}}, never, yes)
    assert names(theirs.take({"b": {}}, lambda c: c.work["family"] == 1, yes)) == ["a"]
    assert theirs.take({"b": {}}, lambda c: c.work["family"] == 2, yes) == []


def test_claims_end_with_their_owner(tmp_path: Path) -> None:
    Store(tmp_path).close()
    with Claims(tmp_path) as mine:
        with Claims(tmp_path) as theirs:
            theirs.take({"a": {}}, never, yes)
            assert names(mine.take({"a": {}}, never, yes)) == ["a"]
        assert mine.take({"a": {}}, never, yes) == []
    assert not list((tmp_path / "owners").iterdir())


KILLED = """
import os, signal, sys
from pathlib import Path
from batchlab.store.claims import Claims
from batchlab.store.database import Store
root = Path(sys.argv[1])
Store(root).close()
claims = Claims(root)
claims.take({"a": {}}, lambda _: False, lambda: True)
print(claims._owner.name, flush=True)
sys.stdin.read()
"""


def test_a_killed_owner_is_dead_at_once(tmp_path: Path) -> None:
    Store(tmp_path).close()
    with Claims(tmp_path) as mine:
        other = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert other.stdout is not None
        assert other.stdin is not None
        other.stdout.readline()
        assert names(mine.take({"a": {}}, never, yes)) == ["a"]
        assert len(living(tmp_path)) == 2
        other.kill()
        other.wait()
        other.stdin.close()
        other.stdout.close()
        assert mine.take({"a": {}}, never, yes) == []
        assert len(living(tmp_path)) == 1


def test_silence_is_death_on_another_host_alone_by_the_heartbeat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owners, "BEAT_S", 3600.0)
    one, other = Owner(tmp_path), Owner(tmp_path)
    path = tmp_path / "owners" / other.name
    assert not one.dead(other.name, other.host)
    assert not one.dead(other.name, "elsewhere")
    long_ago = time.time() - owners.EXPIRED_S - 1
    os.utime(path, (long_ago, long_ago))
    assert one.dead(other.name, other.host)
    assert one.dead(other.name, "elsewhere")
    other.close()
    assert one.dead(other.name, "elsewhere")
    one.close()


def test_a_heartbeat_and_a_return_from_the_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owners, "BEAT_S", 0.01)
    one, other = Owner(tmp_path), Owner(tmp_path)
    path = tmp_path / "owners" / other.name
    os.utime(path, (1.0, 1.0))
    wait_for(lambda: path.stat().st_mtime > 1.0)
    one.bury(other.name)  # others took it for dead
    wait_for(path.exists)
    wait_for(lambda: not one.dead(other.name, other.host))
    other.close()
    one.close()


def test_only_owners_names_name_files(tmp_path: Path) -> None:
    one = Owner(tmp_path)
    for name in ("../x", "", "a" * 31 + "/"):
        with pytest.raises(ValueError, match="not an owner's name"):
            one.bury(name)
    one.close()


def wait_for(condition: object) -> None:
    assert callable(condition)
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)
