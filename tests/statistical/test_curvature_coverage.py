"""Coverage of B_noise's and the rate's intervals on random quadratics, and a control that fails.

Chunks' gradients are N(G, Sigma / b), their Hessians H plus noise that goes with the gradient's, as
it does in a model: H_c = H + (g_c - G).t A. Three chunks a draw, ten draws by default.

Shapes: R repetitions, S draws, K chunks, n = K - 1 others, P parameters.
"""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from batchlab.analysis.curvature import Curvature, curvature
from batchlab.probes.curvature import statistics
from batchlab.record import CurvatureSeries

P, EXAMPLES = 12, 16
H_P = 1.0 / np.arange(1, P + 1)  # curvature and the noise's variance, by direction
A_PP = np.diag(np.linspace(1.0, 0.2, P))
SIGMA = 4 * H_P
G_P = np.full(P, 0.35)
NOISE = float((H_P * SIGMA).sum() / (H_P * G_P**2).sum())
RATE = float((G_P**2).sum() / (H_P * G_P**2).sum())


def repetition(seed: int, draws: int, *, reuse: bool = False) -> Curvature:
    generator = np.random.default_rng(seed)
    rows = []
    for _ in range(draws):
        noise_KP = generator.normal(size=(3, P)) * np.sqrt(SIGMA / EXAMPLES)
        g_KP = G_P + noise_KP
        h_KPP = np.diag(H_P) + 0.6 * noise_KP.sum(axis=1)[:, None, None] * A_PP
        curved = []
        for c in range(3):
            others = [k for k in range(3) if k != c]
            # The control takes the Hessian of a chunk whose gradient it meets.
            h_PP = h_KPP[others[0] if reuse else c]
            curved.append(g_KP[others] @ h_PP @ g_KP[others].T)
        rows.append(
            statistics(torch.tensor(g_KP @ g_KP.T), torch.tensor(np.array(curved)), EXAMPLES)
        )
    tau_S, square_S, curved_tau_S, curved_square_S = np.array(rows).T
    examples_S = np.full(draws, 3.0 * EXAMPLES)
    return curvature(CurvatureSeries(tau_S, square_S, curved_tau_S, curved_square_S, examples_S))


def covered(told: list[Curvature], truth: float, of: str) -> float:
    intervals = [t.noise.scale if of == "noise" else t.rate() for t in told]
    return float(np.mean([i.low <= truth <= i.high for i in intervals]))


def pooled(told: list[Curvature]) -> NDArray[np.float64]:
    return np.array([float(np.mean(t.series.curved_square_S)) for t in told])


@pytest.mark.parametrize(("draws", "repetitions"), [(10, 400), (80, 100)])
def test_coverage_and_bias(draws: int, repetitions: int) -> None:
    told = [repetition(seed, draws) for seed in range(repetitions)]
    assert covered(told, NOISE, "noise") >= 0.92
    assert covered(told, RATE, "rate") >= 0.90
    assert np.mean([t.noise.decided for t in told]) > 0.4
    truth = float((H_P * G_P**2).sum())
    error = pooled(told).std() / np.sqrt(repetitions)
    assert abs(pooled(told).mean() - truth) < 3 * error


def test_negative_control_a_hessian_that_has_met_the_gradient() -> None:
    control = [repetition(seed, 80, reuse=True) for seed in range(100)]
    assert covered(control, NOISE, "noise") < 0.85
    assert covered(control, RATE, "rate") < 0.85
