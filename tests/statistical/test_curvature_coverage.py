"""Coverage of B_noise's and the rate's intervals on random quadratics, and a control that fails.

Chunks' gradients are N(G, Sigma / b), their Hessians H plus noise that goes with the gradient's, as
it does in a model: H_c = H + (g_c - G).t A. Three chunks a draw, ten draws, as by default.

Shapes: R repetitions, S draws, K chunks, n = K - 1 others, P parameters.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from batchlab.analysis.curvature import Curvature, curvature
from batchlab.probes.curvature import statistics
from batchlab.record import CurvatureSeries

P, DRAWS, EXAMPLES, REPETITIONS = 12, 10, 16, 400
H_P = 1.0 / np.arange(1, P + 1)  # curvature and the noise's variance, by direction
A_PP = np.diag(np.linspace(1.0, 0.2, P))
SIGMA = 4 * H_P
G_P = np.full(P, 0.35)
NOISE = float((H_P * SIGMA).sum() / (H_P * G_P**2).sum())
RATE = float((G_P**2).sum() / (H_P * G_P**2).sum())


def repetition(seed: int, *, reuse: bool = False) -> Curvature:
    generator = np.random.default_rng(seed)
    rows = []
    for _ in range(DRAWS):
        noise_KP = generator.normal(size=(3, P)) * np.sqrt(SIGMA / EXAMPLES)
        g_KP = G_P + noise_KP
        h_KPP = np.diag(H_P) + 1.2 * noise_KP.sum(axis=1)[:, None, None] * A_PP
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
    examples_S = np.full(DRAWS, 3.0 * EXAMPLES)
    return curvature(CurvatureSeries(tau_S, square_S, curved_tau_S, curved_square_S, examples_S))


def covered(told: list[Curvature], truth: float, of: str) -> float:
    intervals = [t.noise.scale if of == "noise" else t.rate() for t in told]
    return float(np.mean([i.low <= truth <= i.high for i in intervals]))


def pooled(told: list[Curvature]) -> NDArray[np.float64]:
    return np.array([float(np.mean(t.series.curved_square_S)) for t in told])


def test_coverage_and_bias() -> None:
    told = [repetition(seed) for seed in range(REPETITIONS)]
    assert 0.92 <= covered(told, NOISE, "noise") <= 0.98
    assert 0.92 <= covered(told, RATE, "rate") <= 0.98
    decided = np.mean([t.noise.decided for t in told])
    assert decided > 0.7
    truth = float((H_P * G_P**2).sum())
    error = pooled(told).std() / np.sqrt(REPETITIONS)
    assert abs(pooled(told).mean() - truth) < 3 * error
    # The negative control is biased, and its intervals miss.
    control = [repetition(seed, reuse=True) for seed in range(REPETITIONS)]
    assert abs(pooled(control).mean() - truth) > 6 * error
    assert covered(control, NOISE, "noise") < 0.92
