"""One step on digits, worked out in NumPy: the whole chain from the seed to the records."""

import numpy as np
import pytest
import torch

from batchlab.engine.draws import epoch_order
from batchlab.engine.train import initial_model, train
from batchlab.spec import Cadence, Phase
from batchlab.workloads import workload

RATE, SIZE = 0.1, 5


def test_one_step_by_hand() -> None:
    digits = workload("digits")
    data = digits.load(None).to(torch.device("cpu"), torch.float64)
    phase = Phase(batch_size=SIZE, learning_rate=RATE, steps=1)
    spec = digits.protocol.spec([phase], 7, Cadence())
    spec = spec.model_copy(update={"dtype": "float64"})
    parameters = [p.detach().numpy() for p in initial_model(spec, data).parameters()]
    rows = epoch_order(7, 0, len(data.train_x))[:SIZE]
    x_BI, y_B = data.train_x[rows].numpy(), data.train_y[rows].numpy()

    hidden = [x_BI]
    for w, b in zip(parameters[0:4:2], parameters[1:4:2], strict=True):
        hidden.append(np.maximum(hidden[-1] @ w.T + b, 0))
    logits = hidden[-1] @ parameters[4].T + parameters[5]
    chances = np.exp(logits - logits.max(1, keepdims=True))
    chances /= chances.sum(1, keepdims=True)
    d = (chances - np.eye(10)[y_B]) / SIZE
    gradients: list[np.ndarray] = []
    for layer in (2, 1, 0):
        gradients[:0] = [d.T @ hidden[layer], d.sum(0)]
        d = (d @ parameters[2 * layer]) * (hidden[layer] > 0)

    end = train(spec, data)
    stepped = [p - RATE * g for p, g in zip(parameters, gradients, strict=True)]
    for found, expected in zip(end.group("model").values(), stepped, strict=True):
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12, atol=1e-15)
    told = {(r.step, r.name, r.layer): r.value for r in end.records}
    weights = sum(np.square(g).sum() for g in gradients[0::2])
    biases = sum(np.square(g).sum() for g in gradients[1::2])
    assert told[0, "gradient_norm", "weights"] == pytest.approx(weights**0.5, rel=1e-10)
    assert told[1, "distance", "weights"] == pytest.approx(RATE * weights**0.5, rel=1e-10)
    assert told[1, "distance", "biases"] == pytest.approx(RATE * biases**0.5, rel=1e-10)
    assert told[1, "norm", "biases"] == told[1, "distance", "biases"]
    assert 1 in {r.step for r in end.records if r.name == "test_accuracy"}
