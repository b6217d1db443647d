import gzip
from pathlib import Path

import numpy as np
import pytest
import torch

from batchlab.spec import UserError
from batchlab.workloads import workload
from batchlab.workloads.base import Data
from batchlab.workloads.mnist import PUBLISHED, Mnist
from batchlab.workloads.source import data_dir_from_environment
from tests.workloads.fake import files, idx, source, write

FOLDER = data_dir_from_environment()
FILES = [*FOLDER.glob("train-images*"), *FOLDER.glob("mnist/train-images*")] if FOLDER else []
published = pytest.mark.skipif(
    not FILES, reason="BATCHLAB_DATA_DIR must name a folder that holds MNIST's files"
)


@pytest.fixture(scope="module")
def mnist() -> Data:
    return workload("mnist").load(FOLDER)


@published
def test_shapes_and_dtypes(mnist: Data) -> None:
    assert mnist.train_x.shape == (60000, 784)
    assert mnist.train_y.shape == (60000,)
    assert mnist.test_x.shape == (10000, 784)
    assert mnist.test_y.shape == (10000,)
    assert mnist.train_x.dtype == mnist.test_x.dtype == torch.float32
    assert mnist.train_y.dtype == mnist.test_y.dtype == torch.int64
    assert mnist.train_x.shape[0] == workload("mnist").protocol.train_samples
    assert mnist.classes == 10


@published
def test_inputs_are_standardised(mnist: Data) -> None:
    assert mnist.train_x.mean().item() == pytest.approx(0, abs=1e-3)
    assert mnist.train_x.std().item() == pytest.approx(1, abs=1e-3)
    assert mnist.train_x.min().item() == pytest.approx(-0.1307 / 0.3081)
    assert mnist.train_x.max().item() == pytest.approx((1 - 0.1307) / 0.3081)


@published
def test_labels_are_the_known_ones(mnist: Data) -> None:
    assert mnist.train_y[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert mnist.test_y[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert mnist.train_y.bincount().tolist() == counts


@published
def test_raw_files_give_the_same(mnist: Data, tmp_path: Path) -> None:
    contents = {name: PUBLISHED.read(name, FOLDER) for name in PUBLISHED.sha256}
    write(tmp_path, contents, pack=bytes, suffix="")
    raw = workload("mnist").load(tmp_path)
    assert torch.equal(raw.train_x, mnist.train_x)
    assert torch.equal(raw.test_y, mnist.test_y)


def test_a_small_set_of_the_same_files(tmp_path: Path) -> None:
    contents = files()
    write(tmp_path / "mnist", contents)
    data = Mnist(source(contents)).load(tmp_path)
    pixels = np.frombuffer(contents["t10k-images-idx3-ubyte"][16:], np.uint8).reshape(4, 6)
    expected = (pixels / 255 - 0.1307) / 0.3081
    np.testing.assert_allclose(data.test_x.numpy(), expected, rtol=0, atol=1e-6)
    assert data.train_x.shape == (6, 6)
    assert data.train_y.tolist() == [5, 0, 4, 1, 9, 2]
    assert data.test_y.tolist() == [7, 2, 1, 0]


def test_an_altered_file_is_not_used(tmp_path: Path) -> None:
    contents = files()
    write(tmp_path, contents | {"t10k-labels-idx1-ubyte": idx(np.array([7, 2, 1, 1]))})
    with pytest.raises(UserError, match=r"t10k-labels-idx1-ubyte\.gz: wrong SHA-256"):
        Mnist(source(contents)).load(tmp_path)


def test_a_file_that_is_not_idx_is_named(tmp_path: Path) -> None:
    contents = files() | {"train-labels-idx1-ubyte": b"\0\0\x0d\1" + bytes(8)}
    write(tmp_path, contents, pack=lambda content: gzip.compress(content, mtime=0))
    with pytest.raises(UserError, match=r"^mnist: train-labels-idx1-ubyte: IDX of type 0x0d"):
        Mnist(source(contents)).load(tmp_path)


def test_small_files_are_not_the_published_ones(tmp_path: Path) -> None:
    write(tmp_path, files())
    with pytest.raises(UserError, match="ba891046e650"):
        workload("mnist").load(tmp_path)
