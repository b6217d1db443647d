"""200 damaged inputs: a clear line each, or what was written; no traceback, no other answer."""

import gzip
import hashlib
import json
import shutil
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batchlab.listing import describe
from batchlab.spec import Phase, TrialsSpec, UserError, parse_spec
from batchlab.store.check import check
from batchlab.store.checkpoints import Checkpoints
from batchlab.store.database import FILE, Store
from batchlab.store.repair import repair
from batchlab.workloads.idx import read_idx
from batchlab.workloads.source import Source
from tests import toy
from tests.store.test_check import KEYS, SPECS, made

Answer = str | None  # the one line of an error, or nothing where the answer was right
TOLD: Counter[tuple[str, bool]] = Counter()


def examples(count: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """So many examples, always the same."""
    return settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


@contextmanager
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def answer(ask: Callable[[], Any], right: Any) -> Answer:
    """Whatever else is raised or answered fails the test."""
    try:
        told = ask()
    except UserError as error:
        line = str(error)
        assert line.strip()
        assert "\n" not in line
        assert len(line) < 600
        return line
    assert told == right, "a silent wrong result"
    return None


# Where: a share of the length, so that all parts are hit alike.
PLACE = st.floats(0, 1, exclude_max=True)


@st.composite
def damages(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """Cut short, one bit flipped, or a block overwritten."""
    kind, place = draw(st.sampled_from(["cut", "flip", "block"])), draw(PLACE)
    bit, fill = draw(st.integers(0, 7)), draw(st.binary(min_size=1, max_size=40))

    def damage(content: bytes) -> bytes:
        at = int(place * len(content))
        if kind == "cut":
            return content[:at]
        if kind == "flip":
            return content[:at] + bytes([content[at] ^ (1 << bit)]) + content[at + 1 :]
        return content[:at] + fill + content[at + len(fill) :]

    return damage


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("whole") / "store")


def read_all(root: Path) -> Any:
    with Store(root, create=False) as store:
        frames = [of(KEYS).to_csv() for of in (store.records, store.trials, store.bins)]
        return describe(store), frames, store.requests()


WRONG_TYPES = [
    "UPDATE run SET spec = '[1, 2]' WHERE id = {n}",
    "UPDATE run SET spec = 'not JSON' WHERE id = {n}",
    "UPDATE run SET final = '{{}}' WHERE id = {n}",
    "UPDATE run SET environment = 7 WHERE id = {n}",
    "UPDATE run SET steps = -1 WHERE id = {n}",
    "UPDATE run SET key = '../../x' WHERE id = {n}",
    "UPDATE record SET name = CAST(x'ff00fe' AS TEXT) WHERE run = {n}",
    "UPDATE record SET value = NULL WHERE run = {n}",
    "UPDATE trial SET draw = 4611686018427387904 WHERE run = {n}",
    "UPDATE request SET request = '17'",
    "DELETE FROM seal",
    "UPDATE seal SET rows = {n}",
    "DROP TABLE bin",
    "DROP INDEX run_ledger",
    "ALTER TABLE run RENAME COLUMN status TO state",
    "PRAGMA user_version = 0",
    "PRAGMA application_id = {n}",
]


@examples(40)
@given(damage=damages(), mend=st.booleans())
def test_databases(whole: Path, damage: Callable[[bytes], bytes], mend: bool) -> None:
    right = read_all(whole)
    with scratch() as root:
        (root / FILE).write_bytes(damage((whole / FILE).read_bytes()))
        line = answer(lambda: read_all(root), right)
        TOLD["database", line is not None] += 1
        found = answer_check(root)
        assert line is None or found, "what can't be read is named"
        if mend and found:
            mended(root, whole)


@examples(20)
@given(sql=st.sampled_from(WRONG_TYPES), n=st.integers(1, 6))
def test_databases_of_wrong_types(whole: Path, sql: str, n: int) -> None:
    right = read_all(whole)
    with scratch() as root:
        shutil.copy(whole / FILE, root / FILE)
        db = sqlite3.connect(root / FILE)
        with db:
            db.execute(sql.format(n=n))
        db.close()
        line = answer(lambda: read_all(root), right)
        TOLD["wrong types", line is not None] += 1
        assert line is not None or sql.startswith("UPDATE seal")
        assert answer_check(root) or line is None
        mended(root, whole)


def answer_check(root: Path) -> list[str]:
    """What `check` names; a database of another program is one line and no more."""
    try:
        return [str(damage) for damage in check(root)]
    except UserError as error:
        return [str(error)]


def mended(root: Path, whole: Path) -> None:
    """After a repair every run that is there is as it was."""
    if answer_any(lambda: repair(root)):
        return
    assert check(root) == []
    with Store(root, create=False) as store, Store(whole, create=False) as other:
        kept = [run.key for run in store.runs()]
        assert set(kept) <= set(KEYS)
        assert store.records(kept).to_csv() == other.records(kept).to_csv()
        assert set(store.requests()) <= set(other.requests())


@examples(60)
@given(damage=damages())
def test_checkpoints(damage: Callable[[bytes], bytes]) -> None:
    with scratch() as root:
        checkpoints = Checkpoints(root)
        tensors = {"model/w": torch.arange(40.0), "optimizer/step": torch.tensor(3)}
        meta = {"status": "finished", "records": json.dumps([[0, 0.0, 0, "norm", "all", 0.5]])}
        checkpoints.save(KEYS[0], tensors, meta)
        path = root / f"{KEYS[0]}.safetensors"
        path.write_bytes(damage(path.read_bytes()))

        def load() -> Any:
            found = checkpoints.load(KEYS[0])
            assert found is not None
            return {k: (v.dtype, v.tolist()) for k, v in found[0].items()}, found[1]

        right = {k: (v.dtype, v.tolist()) for k, v in tensors.items()}, meta
        line = answer(load, right)
        TOLD["checkpoint", line is not None] += 1
        assert line is None or str(path) in line


PIXELS = np.arange(60, dtype=np.uint8).reshape(5, 4, 3)
IDX = b"\x00\x00\x08\x03" + np.array(PIXELS.shape, ">u4").tobytes() + PIXELS.tobytes()
DIGEST = hashlib.sha256(IDX).hexdigest()


@examples(50)
@given(damage=damages(), packed=st.booleans())
def test_idx_files(damage: Callable[[bytes], bytes], packed: bool) -> None:
    with scratch() as root:
        source = Source("toy", (), {"x": DIGEST})
        name, content = ("x.gz", gzip.compress(IDX, mtime=0)) if packed else ("x", IDX)
        (root / name).write_bytes(damage(content))
        line = answer(lambda: read_idx(source.read("x", root)).tolist(), PIXELS.tolist())
        TOLD["IDX", line is not None] += 1
        # Without the digest the header is all there is to check: an error or an array, no crash.
        if not packed:
            answer_any(lambda: read_idx(damage(IDX)))


def answer_any(ask: Callable[[], object]) -> Answer:
    """An error's line, if there was one."""
    line = None
    try:
        ask()
    except UserError as error:
        line = str(error)
    assert line is None or "\n" not in line
    return line


TRIALS = TrialsSpec(start=SPECS[0], batch_sizes=(4,), samples=16, draws=2, learning_rate=0.1)
WRONG = st.one_of(
    st.none(),
    st.booleans(),
    st.floats(),
    st.text(max_size=5),
    st.just([]),
    st.just({}),
    st.just(-1),
)


@examples(40)
@given(data=st.data(), trials=st.booleans())
def test_specs(data: st.DataObject, trials: bool) -> None:
    spec = TRIALS if trials else toy.spec(Phase(batch_size=5, learning_rate=0.1, epochs=1))
    text = spec.canonical()
    if data.draw(st.booleans()):
        damaged = text[: data.draw(st.integers(0, len(text) - 1))]
    else:
        given_ = json.loads(text)
        place = given_["start"] if trials and data.draw(st.booleans()) else given_
        name = data.draw(st.sampled_from(sorted(set(place) - {"kind", "detailed", "orders"})))
        place[name] = wrong = data.draw(WRONG.filter(lambda value: value != place[name]))
        damaged = json.dumps(given_)
        if name == "workload" and isinstance(wrong, str):
            return  # any text is a name
    line = answer(lambda: parse_spec(damaged), spec)  # `{}` is the cadence that it has
    TOLD["spec", line is not None] += 1


def test_the_count() -> None:
    """Of all damaged inputs so many were errors; the others were read as they were written."""
    if not TOLD:
        pytest.skip("only together with the tests above")
    errors = sum(count for (_, was), count in TOLD.items() if was)
    print({f"{kind} {'refused' if was else 'as written'}": n for (kind, was), n in TOLD.items()})
    assert sum(TOLD.values()) >= 200
    assert errors >= 170
