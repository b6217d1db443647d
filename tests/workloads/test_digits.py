import hashlib

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from batchlab.workloads import workload
from batchlab.workloads.base import Data

MEAN, DEVIATION = 4.8861, 6.0179  # of the 1,437 training samples' pixels, which are 0 to 16


@pytest.fixture(scope="module")
def digits() -> Data:
    return workload("digits").load(None)


def pixels(x_NI: torch.Tensor) -> np.ndarray:
    return (x_NI.double() * DEVIATION + MEAN).round().numpy().astype(np.uint8)


def test_shapes_and_dtypes(digits: Data) -> None:
    assert digits.train_x.shape == (1437, 64)
    assert digits.train_y.shape == (1437,)
    assert digits.test_x.shape == (360, 64)
    assert digits.test_y.shape == (360,)
    assert digits.train_x.dtype == digits.test_x.dtype == torch.float32
    assert digits.train_y.dtype == digits.test_y.dtype == torch.int64
    assert digits.train_x.shape[0] == workload("digits").protocol.train_samples
    assert digits.classes == 10


def test_standardised_by_the_training_set(digits: Data) -> None:
    assert digits.train_x.mean().item() == pytest.approx(0, abs=1e-6)
    assert digits.train_x.std(correction=0).item() == pytest.approx(1, abs=1e-6)
    # Not by the test set, nor feature by feature.
    assert abs(digits.test_x.mean().item()) > 1e-4
    assert digits.train_x.std(0).min().item() < 0.5


def test_the_split_is_a_split(digits: Data) -> None:
    images, labels = load_digits(return_X_y=True)
    whole = sorted((*image, label) for image, label in zip(images, labels, strict=True))
    parts = [
        np.column_stack([pixels(x_NI), y_N.numpy()])
        for x_NI, y_N in [(digits.train_x, digits.train_y), (digits.test_x, digits.test_y)]
    ]
    assert sorted(map(tuple, np.concatenate(parts))) == whole


def test_the_split_is_by_class(digits: Data) -> None:
    all_N = torch.cat([digits.train_y, digits.test_y]).bincount()
    expected = all_N * 360 / 1797
    assert (digits.test_y.bincount() - expected).abs().max().item() < 1


def test_the_split_is_this_one(digits: Data) -> None:
    assert digits.test_y[:10].tolist() == [7, 6, 3, 7, 7, 3, 2, 8, 9, 3]
    digest = hashlib.sha256(pixels(digits.train_x).tobytes()).hexdigest()
    assert digest == "5760f944f9d4583320655eb3932bdbb8a1d7ecccece1d5e8ac73699a93fdf434"


def test_loading_again_gives_the_same(digits: Data) -> None:
    again = workload("digits").load(None)
    assert torch.equal(again.train_x, digits.train_x)
    assert torch.equal(again.test_y, digits.test_y)
