"""Raw gradients on disk."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from batchlab.spec import TrialsSpec, UserError
from batchlab.store.tensors import TensorFiles
from tests import toy

SPEC = TrialsSpec(
    start=toy.spec(toy.phase(10)),
    batch_sizes=(1, 8),
    samples=24,
    draws=3,
    orders=2,
    learning_rate=0.05,
    conventions=("sum-frozen", "sum-stepping"),
)


def fill(files: TensorFiles) -> dict[tuple[int, int, int, str], torch.Tensor]:
    given: dict[tuple[int, int, int, str], torch.Tensor] = {}
    for size in reversed(SPEC.batch_sizes):
        for draw in range(3):
            for order in range(2):
                for convention in SPEC.conventions:
                    gradient = torch.randn(5, 4).mT
                    files(size, draw, order, convention, gradient)
                    given[size, draw, order, convention] = gradient
    return given


def test_every_gradient_in_its_place(tmp_path: Path) -> None:
    root = tmp_path / "new" / "tensors"
    with TensorFiles(root, SPEC, "4.weight", (4, 5)) as files:
        given = fill(files)
        parts = {p.name for p in root.iterdir()}
        assert parts == {"index.json.part", "sum-frozen.npy.part", "sum-stepping.npy.part"}
    assert {p.name for p in root.iterdir()} == {p.removesuffix(".part") for p in parts}
    index = json.loads((root / "index.json").read_text())
    assert index["batch_sizes"] == [1, 8]
    assert index["layer"] == "4.weight"
    for (size, draw, order, convention), gradient in given.items():
        stored = np.load(root / f"{convention}.npy", mmap_mode="r")
        assert stored.shape == (2, 3, 2, 4, 5)
        place = index["batch_sizes"].index(size)
        np.testing.assert_array_equal(stored[place, draw, order], gradient.numpy())


def test_what_is_there_is_not_written_over(tmp_path: Path) -> None:
    with TensorFiles(tmp_path, SPEC, "4.weight", (4, 5)) as files:
        fill(files)
    with pytest.raises(UserError, match="is there already; name a new directory"):
        TensorFiles(tmp_path, SPEC, "4.weight", (4, 5))


def test_an_interrupted_one_goes_on(tmp_path: Path) -> None:
    files = TensorFiles(tmp_path, SPEC, "4.weight", (4, 5))
    assert not files.resumed
    files(8, 2, 1, "sum-stepping", torch.full((4, 5), 3.0))
    files.__exit__(InterruptedError)
    assert not (tmp_path / "index.json").exists()
    with TensorFiles(tmp_path, SPEC, "4.weight", (4, 5)) as files:
        assert files.resumed
    assert np.load(tmp_path / "sum-stepping.npy")[1, 2, 1, 0, 0] == 3.0


def test_what_was_begun_for_other_trials_is_made_anew(tmp_path: Path) -> None:
    other = SPEC.model_copy(update={"learning_rate": 0.1})
    files = TensorFiles(tmp_path, other, "4.weight", (4, 5))
    files(8, 2, 1, "sum-stepping", torch.full((4, 5), 3.0))
    files.__exit__(InterruptedError)
    with TensorFiles(tmp_path, SPEC, "4.weight", (4, 5)) as again:
        assert not again.resumed
        assert again.mark != files.mark
    assert not np.load(tmp_path / "sum-stepping.npy").any()


def test_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(UserError, match=r"can't be written \(No space left on device\)"):
        TensorFiles(tmp_path / "t", SPEC, "4.weight", (4, 5))
    assert not list((tmp_path / "t").iterdir())
