"""Displacement against closed forms."""

from math import sqrt

import pytest
import torch

from batchlab.probes.displacement import Displacement
from batchlab.record import BIASES, WEIGHTS


def as_dict(probe: Displacement) -> dict[tuple[str, str], float]:
    return {(r.name, r.layer): r.value for r in probe.compute()}


def test_closed_form() -> None:
    w0, w = torch.tensor([[3.0, 4.0]]), torch.tensor([[4.0, 3.0]])
    probe = Displacement()
    probe.update("a.weight", w, w0)
    probe.update("a.bias", torch.tensor([2.0]), torch.zeros(1))
    told = as_dict(probe)
    assert told["distance", "a.weight"] == pytest.approx(sqrt(2))
    assert told["norm", "a.weight"] == pytest.approx(5)
    assert told["cosine", "a.weight"] == pytest.approx(24 / 25)
    assert told["distance", BIASES] == told["norm", BIASES] == 2
    assert ("cosine", "a.bias") not in told


def test_totals_are_of_one_long_vector() -> None:
    g = torch.Generator().manual_seed(0)
    layers = [torch.randn(4, 5, generator=g), torch.randn(3, 4, generator=g)]
    starts = [torch.randn(4, 5, generator=g), torch.randn(3, 4, generator=g)]
    probe = Displacement()
    for i, (w, w0) in enumerate(zip(layers, starts, strict=True)):
        probe.update(str(i), w, w0)
    told = as_dict(probe)
    long = torch.cat([w.flatten() for w in layers]).double()
    long0 = torch.cat([w.flatten() for w in starts]).double()
    assert told["distance", WEIGHTS] == pytest.approx(float((long - long0).norm()), rel=1e-12)
    cosine = torch.nn.functional.cosine_similarity(long, long0, dim=0)
    assert told["cosine", WEIGHTS] == pytest.approx(float(cosine), rel=1e-12)
    mean_of_layers = (told["cosine", "0"] + told["cosine", "1"]) / 2
    assert told["cosine", WEIGHTS] != pytest.approx(mean_of_layers, rel=1e-3)


def test_small_difference_of_large_vectors() -> None:
    w0 = torch.full((100, 100), 1e3)
    w = w0.clone()
    w[0, 0] += 2**-10
    probe = Displacement()
    probe.update("w", w, w0)
    assert as_dict(probe)["distance", "w"] == 2**-10


def test_merge_equals_update() -> None:
    g = torch.Generator().manual_seed(1)
    pairs = {n: torch.randn(2, 3, 3, generator=g) for n in "abc"}
    whole, left, right = Displacement(), Displacement(), Displacement()
    for n, (w, w0) in pairs.items():
        whole.update(n, w, w0)
        (left if n == "a" else right).update(n, w, w0)
    left.merge(right)
    assert as_dict(left) == as_dict(whole)


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="shape"):
        Displacement().update("w", torch.zeros(2, 2), torch.zeros(4))
