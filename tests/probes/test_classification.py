"""Loss and accuracy against closed forms."""

from math import log

import pytest
import torch

from batchlab.probes.classification import Classification


def test_uniform_logits() -> None:
    probe = Classification("test")
    probe.update(torch.zeros(6, 10), torch.tensor([0, 0, 0, 1, 2, 3]))
    loss, accuracy = probe.compute()
    assert (loss.name, accuracy.name) == ("test_loss", "test_accuracy")
    assert loss.value == pytest.approx(log(10))
    assert accuracy.value == 0.5  # ties go to the first class


def test_parts_weigh_by_their_size_and_merge() -> None:
    g = torch.Generator().manual_seed(0)
    logits, y = torch.randn(50, 4, generator=g), torch.randint(4, (50,), generator=g)
    whole, a, b = (Classification("train") for _ in range(3))
    whole.update(logits, y)
    a.update(logits[:7], y[:7])
    b.update(logits[7:], y[7:])
    a.merge(b)
    for one, other in zip(a.compute(), whole.compute(), strict=True):
        assert one.value == pytest.approx(other.value, rel=1e-6)
    expected = torch.nn.functional.cross_entropy(logits, y)
    assert whole.compute()[0].value == pytest.approx(float(expected), rel=1e-6)


def test_nothing_seen() -> None:
    with pytest.raises(ValueError, match="no test samples"):
        Classification("test").compute()
