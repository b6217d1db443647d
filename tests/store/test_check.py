"""What is damaged is found and named, and repair drops that and nothing else."""

import json
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from batchlab.record import BinRecord, Record, TrialRecord
from batchlab.spec import Phase, TrainSpec, UserError
from batchlab.store.check import check
from batchlab.store.checkpoints import Checkpoints
from batchlab.store.database import FILE, Run, Store
from batchlab.store.owners import Owner
from batchlab.store.repair import repair
from tests import toy

SPECS = [toy.spec(Phase(batch_size=5, learning_rate=0.1, epochs=1), seed=seed) for seed in range(6)]
KEYS = [spec.key for spec in SPECS]


def made(root: Path) -> Path:
    with Store(root) as store:
        for k, spec in enumerate(SPECS):
            run = Run(spec.key, "train", spec.canonical(), "finished", 9, 0.5, "{}")
            records = [Record(s, s / 9, s * 5, "norm", "weights", k + s / 7) for s in range(40)]
            trials = [TrialRecord(4, d, 0, "sum-last", "w", "norm", d / 3) for d in range(20)]
            store.add(run, records, trials, [BinRecord(4, "sum-last", "w", 0.0, 0.1, k)])
        store.ask('{"a":1}')
    trajectory = SPECS[0]
    meta = {"spec": trajectory.model_dump_json(), "status": "finished"}
    Checkpoints(root / "checkpoints").save(trajectory.key, {"w": torch.ones(9)}, meta)
    Checkpoints(root / "partial").save(KEYS[1], {"w": torch.ones(9)}, {"status": "running"})
    return root


def change(root: Path, sql: str, *values: object) -> None:
    db = sqlite3.connect(root / FILE)
    with db:
        db.execute(sql, values)
    db.close()


def flip(path: Path, find: bytes) -> None:
    """One bit within the last place of these bytes."""
    content = bytearray(path.read_bytes())
    at = content.rindex(find) + len(find) // 2
    content[at] ^= 1
    path.write_bytes(content)


def test_nothing_is_damaged(tmp_path: Path) -> None:
    root = made(tmp_path / "s")
    assert check(root) == []
    before = {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}
    done = repair(root)
    assert (done.runs, done.dropped, done.copy) == (6, [], None)
    assert {p: p.read_bytes() for p in root.rglob("*") if p.is_file()} == before


ROWS: dict[str, tuple[str, tuple[object, ...], str]] = {
    "a value": ("UPDATE record SET value = 1e9 WHERE run = 3 AND step = 7", (), "its records"),
    "a record less": ("DELETE FROM record WHERE run = 3 AND step = 7", (), "its records"),
    "a trial more": ("INSERT INTO trial SELECT * FROM trial WHERE run = 3", (), "its trials"),
    "a bin": ("UPDATE bin SET frequency = 99 WHERE run = 3", (), "its bins"),
    "how it ended": ("UPDATE run SET status = 'diverged' WHERE id = 3", (), "its row"),
    "its spec": ("UPDATE run SET spec = ? WHERE id = 3", (SPECS[5].canonical(),), "its row"),
    "its last values": ("UPDATE run SET final = '[]' WHERE id = 3", (), "its row"),
}


@pytest.mark.parametrize("what", ROWS)
def test_a_damaged_run_is_refused_named_and_dropped(tmp_path: Path, what: str) -> None:
    root = made(tmp_path / "s")
    sql, values, problem = ROWS[what]
    change(root, sql, *values)
    with Store(root, create=False) as store, pytest.raises(UserError, match="damaged") as raised:
        store.runs(), store.records(KEYS), store.trials(KEYS), store.bins(KEYS)
    assert "store check" in str(raised.value)
    assert "\n" not in str(raised.value)
    named = [damage for damage in check(root) if damage.kind == "run"]
    assert [damage.name for damage in named] == [KEYS[2]]
    assert problem in named[0].problem
    done = repair(root)
    assert [damage.name for damage in done.dropped] == [KEYS[2]]
    assert done.copy is not None
    assert (done.copy / FILE).exists()
    assert check(root) == []
    rest = KEYS[:2] + KEYS[3:]
    with Store(root, create=False) as store, Store(made(tmp_path / "other")) as whole:
        assert store.keys() == set(rest)
        assert store.records(rest).equals(whole.records(rest))
        assert store.requests() == ['{"a":1}']


def test_a_run_that_vanished(tmp_path: Path) -> None:
    root = made(tmp_path / "s")
    for table in ("record", "trial", "bin"):
        change(root, f"DELETE FROM {table} WHERE run = 3")
    change(root, "DELETE FROM run WHERE id = 3")
    with Store(root, create=False) as store, pytest.raises(UserError, match="not all that were"):
        store.keys()
    assert [(d.kind, d.name) for d in check(root)] == [("database", FILE)]
    assert repair(root).runs == 5
    assert check(root) == []


def test_rows_of_no_run_and_a_request(tmp_path: Path) -> None:
    root = made(tmp_path / "s")
    change(
        root, "INSERT INTO record SELECT 77, step, epoch, samples, name, layer, value FROM record"
    )
    change(root, "UPDATE request SET request = '{\"a\":2}'")
    with Store(root, create=False) as store, pytest.raises(UserError, match="a request"):
        store.requests()
    assert {d.kind for d in check(root)} == {"database", "request"}
    done = repair(root)
    assert done.runs == 6
    assert [d.kind for d in done.dropped] == ["request"]
    assert check(root) == []


def test_a_damaged_index(tmp_path: Path) -> None:
    root = made(tmp_path / "s")
    flip(root / FILE, f"{KEYS[4]}finished".encode())  # only the ledger has these side by side
    with pytest.raises(UserError, match="damaged"), Store(root, create=False) as store:
        store.runs()
    assert check(root)
    assert repair(root).runs == 6, "the runs themselves are whole"
    assert check(root) == []


@pytest.mark.parametrize("damage", ["truncated", "header", "schema", "page"])
def test_damaged_pages(tmp_path: Path, damage: str) -> None:
    root = made(tmp_path / "s")
    path = root / FILE
    content = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "header":
        path.write_bytes(b"\xff" * 16 + content[16:])
    elif damage == "schema":
        path.write_bytes(content.replace(b"CREATE TABLE run (", b"CREATE \nABLE run ("))
    else:
        path.write_bytes(content[:-4096] + b"\xff" * 4096)
    assert check(root)
    repair(root)
    assert check(root) == []
    with Store(root, create=False) as store, Store(made(tmp_path / "other")) as whole:
        rest = [run.key for run in store.runs()]
        assert store.records(rest).equals(whole.records(rest))
        assert damage not in ("header", "schema") or len(rest) == 6


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-5]),
    "a tensor": lambda path: flip(path, path.read_bytes()[-8:]),
    "a text": lambda path: flip(path, b"finished"),
    "the digest's name": lambda path: flip(path, b"sha256"),
    "under another name": lambda path: path.rename(path.with_stem(KEYS[5])),
    "a link": lambda path: os.symlink(path.rename(path.parents[2] / "out"), path),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_checkpoint(tmp_path: Path, what: str) -> None:
    root = made(tmp_path / "s")
    DAMAGES[what](root / "checkpoints" / f"{KEYS[0]}.safetensors")
    checkpoints = Checkpoints(root / "checkpoints")
    key = checkpoints.files()[0].removesuffix(".safetensors")
    with pytest.raises(UserError, match="damaged") as raised:
        checkpoints.load(key)
    assert "\n" not in str(raised.value)
    assert [(d.kind, d.name) for d in check(root)] == [
        ("checkpoint", f"checkpoints/{key}.safetensors")
    ]
    done = repair(root)
    assert (done.runs, len(done.dropped)) == (6, 1)
    assert check(root) == []
    assert checkpoints.load(key) is None
    assert Checkpoints(root / "partial").load(KEYS[1]) is not None


def test_a_checkpoint_without_a_digest_is_an_older_version_s(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / f"{KEYS[0]}.safetensors"
    save_file({"w": torch.ones(3)}, path, {"status": "finished"})
    assert Checkpoints(tmp_path).load(KEYS[0]) is not None


def test_what_a_killed_writer_left(tmp_path: Path) -> None:
    root = made(tmp_path / "s")
    old, new = (root / "partial" / f"{name}.tmp" for name in ("old", "new"))
    for path in (old, new):
        path.write_bytes(b"half")
    hours = time.time() - 4000
    os.utime(old, (hours, hours))
    (root / f"{FILE}.0.new").write_bytes(b"")
    (root / f"{FILE}.scratch").mkdir()
    assert {damage.kind for damage in check(root)} == {"leftover"}
    assert len(check(root)) == 4
    Checkpoints(root / "partial").sweep()
    assert not old.exists()
    assert new.exists(), "it may be under way"
    assert len(repair(root).dropped) == 3
    assert check(root) == []


def test_directories_that_lead_out_of_the_store(tmp_path: Path) -> None:
    root = made(tmp_path / "s")
    (root / "partial").rename(tmp_path / "elsewhere")
    (root / "partial").symlink_to(tmp_path / "elsewhere")
    assert "link out of the store" in check(root)[0].problem
    (root / FILE).rename(tmp_path / FILE)
    (root / FILE).symlink_to(tmp_path / FILE)
    with pytest.raises(UserError, match="link out of the store"):
        Store(root, create=False)


def test_a_schema_that_does_something(tmp_path: Path) -> None:
    root = made(tmp_path / "s")
    change(root, "CREATE TRIGGER t AFTER INSERT ON run BEGIN DELETE FROM run; END")
    with pytest.raises(UserError, match="another program"):
        Store(root, create=False)


def test_not_while_it_is_in_use(tmp_path: Path) -> None:
    root = made(tmp_path / "s")
    owner = Owner(root)
    change(root, "DELETE FROM run WHERE id = 3")
    with pytest.raises(UserError, match="in use"):
        repair(root)
    owner.close()
    assert repair(root).runs == 5


def test_an_emptied_file_is_damage(tmp_path: Path) -> None:
    root = made(tmp_path / "s")
    (root / FILE).write_bytes(b"")
    with pytest.raises(UserError, match="empty"):
        Store(root)
    assert "empty" in check(root)[0].problem
    assert repair(root).runs == 0


def test_specs_survive(tmp_path: Path) -> None:
    with Store(made(tmp_path / "s"), create=False) as store:
        assert [TrainSpec.model_validate_json(run.spec) for run in store.runs()] == SPECS
        assert json.loads(store.runs()[0].environment) == {}
