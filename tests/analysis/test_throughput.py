"""Seconds a step: the form, floor, slope and knee of known machines; no answer beyond the data."""

from collections.abc import Callable
from math import inf

import numpy as np
import pandas as pd
import pytest

from batchlab.analysis.throughput import measured
from batchlab.spec import UserError

A, B = 1e-3, 2e-5
SIZES = tuple(2.0**k for k in range(10))
TRUTHS: dict[str, tuple[Callable[[float], float], float]] = {
    "affine": (lambda b: A + B * b, 9 / 2 * A / B),  # r = 20/11: (r - 1) / (2 - r) = 9/2
    "roofline": (lambda b: max(A, B * b), A / B / 1.1),
    "smooth": (lambda b: (A**3 + (B * b) ** 3) ** (1 / 3), 1.358 * A / B),
}


def timed(of: Callable[[float], float], error: float, repeats: int = 5) -> pd.DataFrame:
    generator = np.random.default_rng(0)
    rows = [
        (b, of(b) * np.exp(error * generator.standard_normal()))
        for b in SIZES
        for _ in range(repeats)
    ]
    return pd.DataFrame(rows, columns=["batch_size", "seconds"])


@pytest.mark.parametrize("form", TRUTHS)
def test_known_machines(form: str) -> None:
    of, knee = TRUTHS[form]
    exact = measured(timed(of, 0.0))
    assert exact.curve is not None
    assert exact.curve.form == form
    assert exact.curve.floor == pytest.approx(A, rel=0.01)
    assert exact.curve.slope == pytest.approx(B, rel=0.01)
    assert exact.knee().effect == pytest.approx(knee, rel=0.02)
    told = measured(timed(of, 0.02))
    assert told.curve is not None
    assert told.curve.form == form
    assert abs(told.curve.largest) < 0.03
    k = told.knee()
    assert k.low < knee * 1.01
    assert knee * 0.99 < k.high < 1.2 * k.low


@pytest.mark.parametrize("form", TRUTHS)
def test_at_the_knee_a_doubling_gains_what_was_asked(form: str) -> None:
    of, _ = TRUTHS[form]
    for gain in (0.15, 0.4):
        size = measured(timed(of, 0.0)).knee(gain).effect
        assert 2 * of(size) / of(2 * size) == pytest.approx(1 + gain, abs=0.01)


def test_a_time_is_of_its_own_measurements() -> None:
    frame = timed(TRUTHS["affine"][0], 0.1)
    told = measured(frame).at(8)
    logs = np.log(frame[frame["batch_size"] == 8]["seconds"])
    half = 2.776 * logs.std() / 5**0.5
    assert told.measured
    assert told.seconds.n == 5
    assert np.log(told.seconds.effect) == pytest.approx(logs.mean())
    assert np.log(told.seconds.high) == pytest.approx(logs.mean() + half, abs=1e-4)
    moved = frame.assign(seconds=frame["seconds"].where(frame["batch_size"] == 8, 1.0))
    assert measured(moved).at(8) == told  # whatever the other sizes took


def test_between_two_sizes_is_marked_and_beyond_them_refused() -> None:
    told = measured(timed(lambda b: A * b**0.5, 0.0))
    reading = told.at(24)
    assert not reading.measured
    assert reading.seconds.effect == pytest.approx(A * 24**0.5)
    for size in (0.5, 513):
        with pytest.raises(UserError, match="sizes from 1 to 512"):
            told.at(size)
        with pytest.raises(UserError, match="sizes from 1 to 512"):
            told.draw(np.array([8.0, size]), 3, np.random.default_rng(0))


def test_a_knee_outside_of_the_sizes_has_an_open_end() -> None:
    flat = measured(timed(lambda b: A + B / 100 * b, 0.0)).knee()
    assert (flat.effect, flat.low, flat.high) == (inf, 256, inf)
    straight = measured(timed(lambda b: B * b, 0.0)).knee()
    assert (straight.effect, straight.low, straight.high) == (0, 0, 1)


def test_no_knee_of_a_curve_that_misses() -> None:
    told = measured(timed(lambda b: A * b**0.5, 0.01))
    assert told.curve is not None
    assert abs(told.curve.largest) > 0.2  # the negative control: no form fits
    with pytest.raises(UserError, match="off the curve"):
        told.knee()


def test_one_measurement_a_size_has_no_interval() -> None:
    told = measured(timed(TRUTHS["affine"][0], 0.02, repeats=1)).at(8).seconds
    assert (told.low, told.high, told.n) == (0, inf, 1)


def test_draws_are_spread_as_the_interval() -> None:
    told = measured(timed(TRUTHS["affine"][0], 0.05))
    drawn = told.draw(np.array([8.0, 64.0]), 20_000, np.random.default_rng(0))
    for column, size in enumerate((8, 64)):
        seconds = told.at(size).seconds
        ends = np.quantile(drawn[:, column], [0.025, 0.975])
        assert ends == pytest.approx([seconds.low, seconds.high], rel=0.01)


def test_what_is_refused() -> None:
    frame = timed(TRUTHS["affine"][0], 0.0)
    with pytest.raises(UserError, match="no column 'seconds'"):
        measured(frame.drop(columns="seconds"))
    with pytest.raises(UserError, match="seconds: positive"):
        measured(frame.assign(seconds=0.0))
    with pytest.raises(UserError, match="batch_size: positive"):
        measured(frame.head(0))
    with pytest.raises(UserError, match="gain"):
        measured(frame).knee(1.5)
    with pytest.raises(UserError, match="3 sizes, not 2"):
        measured(frame.head(10)).knee()
