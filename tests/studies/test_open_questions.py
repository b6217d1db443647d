"""The statistics of the open questions' studies against closed forms."""

import numpy as np
import pandas as pd
import pytest

from batchlab.record import ALL
from batchlab.studies.direction import noise_scale, norm_exponent, spread_exponent
from batchlab.studies.results import Part, Start, Trials
from batchlab.studies.spread_panels import of_norms

SIZES = np.array([1, 4, 16])


def test_the_noise_scale_is_pooled_before_it_is_divided() -> None:
    trace, square = [8.0, 12.0], [1.0, 3.0]
    rows = [
        (draw, layer, name, factor * value)
        for draw in range(2)
        for layer, factor in ((ALL, 1.0), ("0.weight", 2.0))
        for name, value in (("noise_trace", trace[draw]), ("gradient_square", square[draw]))
    ]
    start = Start(pd.DataFrame(rows, columns=["draw", "layer", "name", "value"]), None)
    # |G|^2 from draws without replacement is low by tr(Sigma) / N
    assert noise_scale(start, 20) == pytest.approx(10 / (2 + 10 / 20))
    assert noise_scale(start, 10**12) == pytest.approx(5)
    assert noise_scale(start, 10**12) != pytest.approx(np.mean([8 / 1, 12 / 3]))
    assert noise_scale(start, 20, "0.weight") == pytest.approx(4)


def test_exponents_by_layer() -> None:
    noise = np.random.default_rng(0).normal(size=(1, 50, 1))
    noise -= noise.mean()
    norms = SIZES[:, None, None] ** 0.5 * (10 + noise * SIZES[:, None, None] ** 0.25)
    assert norm_exponent(SIZES, norms) == pytest.approx(0.5)
    assert spread_exponent(SIZES, norms) == pytest.approx(0.25)


def table() -> Trials:
    g = np.random.default_rng(1)
    rows = []
    for size in reversed(SIZES.tolist()):
        for draw in range(4):
            for layer in ("0.weight", "2.weight"):
                if layer == "2.weight" or draw < 2:
                    rows.append((size, draw, 0, layer, "norm", size + g.normal()))
            rows.append((size, draw, 0, "2.weight", "kurtosis", 3.0))
            for other in SIZES.tolist():
                if draw < 2 and size < other:
                    rows.append((size, draw, 0, "2.weight", f"cosine to {other}", size / other))
    columns = ["batch_size", "draw", "order", "layer", "name", "value"]
    return Trials(pd.DataFrame(rows, columns=columns), pd.DataFrame())


def test_trials_by_layer_and_pair() -> None:
    t = table()
    assert t.layers == ["0.weight", "2.weight"]
    assert t.norms.shape == (3, 4, 1)
    assert t.values("norm", "0.weight").shape == (3, 2, 1)
    assert np.all(np.diff(t.means) > 0)
    assert of_norms(t, "mean") == pytest.approx(t.norms.mean(axis=(1, 2)))
    assert of_norms(t, "std") == pytest.approx(t.norms[:, :, 0].std(axis=1, ddof=1))
    assert t.pair(1, 16) == pytest.approx([1 / 16] * 2)
    assert t.pair(16, 4) == pytest.approx([1 / 4] * 2)
    assert len(t.pair(1, 3)) == 0
    with pytest.raises(KeyError):
        t.values("kurtosis", "0.weight")


def test_a_pass_that_lacks_is_no_table() -> None:
    columns = ["batch_size", "draw", "order", "layer", "name", "value"]
    rows = [(b, draw, 0, "w", "norm", 1.0) for b in (1, 4) for draw in (0, 1)]
    with pytest.raises(ValueError, match="reshape"):
        Part.of(pd.DataFrame(rows[:-1], columns=columns))


def test_what_the_draws_say_at_the_start() -> None:
    rows = [
        (draw, layer, name, 10 * draw + len(layer))
        for draw in range(3)
        for layer in ("0.weight", "all")
        for name in ("diversity", "mean_cosine")
        if draw < 2 or name == "diversity"
    ]
    start = Start(pd.DataFrame(rows, columns=["draw", "layer", "name", "value"]), None)
    assert start.names == ["diversity", "mean_cosine"]
    assert start.layers == ["0.weight", "all"]
    assert start.values("diversity", "all").tolist() == [3, 13, 23]
    assert start.values("mean_cosine", "0.weight").tolist() == [8, 18]
    assert len(start.values("noise_scale", "all")) == 0  # where no draw has it
