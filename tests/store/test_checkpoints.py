"""Checkpoint files: whole, exact, and never able to leave their directory."""

from pathlib import Path

import pytest
import torch

from batchlab.spec import UserError
from batchlab.store.checkpoints import Checkpoints

KEY = "0123456789abcdef" * 4


def test_exact_round_trip(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "deep" / "er")
    tensors = {"model/w": torch.randn(3, 4), "optimizer/0.step": torch.tensor(7.0)}
    assert checkpoints.load(KEY) is None
    checkpoints.save(KEY, {"model/w": torch.zeros(1)}, {})
    checkpoints.save(KEY, tensors, {"status": "running"})
    found = checkpoints.load(KEY)
    assert found is not None
    assert found[1] == {"status": "running"}
    assert found[0].keys() == tensors.keys()
    assert all(torch.equal(v, found[0][k]) for k, v in tensors.items())
    assert checkpoints.where(KEY) == str(tmp_path / "deep" / "er" / f"{KEY}.safetensors")
    assert [p.name for p in (tmp_path / "deep" / "er").iterdir()] == [f"{KEY}.safetensors"]
    checkpoints.drop(KEY)
    checkpoints.drop(KEY)
    assert checkpoints.load(KEY) is None


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(KEY, {"w": torch.zeros(100)}, {})
    path = tmp_path / f"{KEY}.safetensors"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(UserError, match="damaged") as raised:
        checkpoints.load(KEY)
    assert path.name in str(raised.value)


@pytest.mark.parametrize("key", ["../../etc/passwd", "", "a", "/" * 64, "A" * 64])
def test_only_keys_name_files(tmp_path: Path, key: str) -> None:
    with pytest.raises(ValueError, match="not a run's key"):
        Checkpoints(tmp_path).where(key)


def test_not_writable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="can't be written"):
        Checkpoints(tmp_path / "file").save(KEY, {}, {})
