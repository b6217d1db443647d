"""Tables of rows whose answer is known: a hyperbola, censored seeds, sizes not told apart."""

from math import exp, inf, log, sqrt
from typing import Any

import pytest
from scipy import stats

from batchlab.sweep.protocol import Protocol
from batchlab.sweep.result import Result, result

PROTOCOL = Protocol(target=0.1, better="lower", metric="loss", budget=10**6, trials=3, seed=0)


def row(
    size: int,
    seed: int,
    steps: float,
    outcome: str = "reached",
    kind: str = "repeat",
    rate: float = 1,
) -> dict[str, Any]:
    return {
        "kind": kind,
        "batch_size": size,
        "rate": rate,
        "seed": seed,
        "outcome": outcome,
        "steps": steps,
        "samples": steps * size,
        "seconds": steps * (1 + size / 100),
        "looks": [[1, size, 0.2]],
    }


def told(*rows: dict[str, Any]) -> Result:
    measured: dict[int, list[dict[str, Any]]] = {}
    for r in rows:
        measured.setdefault(r["batch_size"], []).append(r)
    return result("a test", PROTOCOL, measured)


def hyperbola(least: float = 100, critical: float = 64) -> Result:
    sizes, noises = (4, 16, 64, 256, 1024), (0.95, 1.0, 1.05)
    return told(
        *(
            row(b, seed, noise * least * (1 + critical / b))
            for b in sizes
            for seed, noise in enumerate(noises)
        )
    )


def test_a_hyperbola_comes_back() -> None:
    done = hyperbola()
    assert done.fit is not None
    assert done.fit.critical.effect == pytest.approx(64, rel=0.02)
    assert done.fit.least_steps.effect == pytest.approx(100, rel=0.02)
    # Least time: (1 + 64 / B) (1 + B / 100) is least at 80; of those tried, at 64.
    assert done.fastest[0] == 64
    assert done.json()["fit"]["misfit"]["verdict"] == "fits"


def test_means_are_geometric() -> None:
    values = [100.0, 200.0, 400.0]
    (one,) = told(*(row(8, seed, steps) for seed, steps in enumerate(values))).rows
    half = float(stats.t.ppf(0.975, 2)) * log(2) / sqrt(3)
    assert one.steps.effect == pytest.approx(200)
    assert one.steps.low == pytest.approx(200 * exp(-half))
    assert one.samples.high == pytest.approx(1600 * exp(half))


def test_a_seed_that_does_not_arrive_is_no_small_number() -> None:
    done = told(row(8, 0, 50), row(8, 1, 60), row(8, 2, 1000, "unreached"))
    (one,) = done.rows
    assert (one.steps.effect, one.steps.low, one.steps.high) == (60, 50, inf)
    assert one.cells()["reached"] == "2/3"
    assert one.json()["steps"] == {"effect": 60, "low": 50, "high": None, "n": 2}
    (most,) = told(row(8, 0, 50), row(8, 1, 9, "diverged"), row(8, 2, 9, "diverged")).rows
    assert most.steps.effect == inf
    assert told(row(8, 0, 9, "unreached")).fastest == ()


def test_sizes_that_are_not_told_apart() -> None:
    apart = told(*(row(b, s, 100 * n) for b in (8, 400) for s, n in enumerate((0.99, 1.01))))
    assert apart.fastest == (8,)
    close = told(*(row(b, s, 100 * n) for b in (8, 10) for s, n in enumerate((0.9, 1.1))))
    assert close.fastest == (8, 10)
    assert "not told apart: 10" in close.lines()[-1]


def test_a_best_rate_at_the_edge_is_marked() -> None:
    search = [row(8, 0, 50, kind="search", rate=r) for r in (0.1, 0.2)]
    edge = told(*search, row(8, 0, 50, rate=0.1))
    assert edge.rows[0].edge == "lowest"
    assert edge.rows[0].cells()["rate"] == "0.1 !"
    assert "nothing was tried beyond" in edge.lines()[0]
    inner = [row(8, 0, 50 + 50 * (r != 0.2), kind="search", rate=r) for r in (0.1, 0.2, 0.4)]
    assert told(*inner, row(8, 0, 50, rate=0.2)).rows[0].edge == ""


def test_short_last_batches_count_as_what_they_are() -> None:
    done = hyperbola()
    noises = list(enumerate((0.95, 1, 1.05)))
    short = [row(1024, seed, n * 100 * (1 + 64 / 718)) for seed, n in noises]
    for r in short:
        r["samples"] = r["steps"] * 718  # a pass of 1,436 is a batch of 1,024 and one of 412
    kept = [row(b, seed, n * 100 * (1 + 64 / b)) for b in (4, 16, 64) for seed, n in noises]
    cut = told(*kept, *short)
    assert sorted(set(cut.trials["batch_size"].round(6))) == [4, 16, 64, 718]
    assert cut.rows[-1].batch_size == 1024
    assert cut.fit is not None
    assert done.fit is not None
    assert cut.fit.least_samples.effect == pytest.approx(done.fit.least_samples.effect, rel=0.01)


def test_a_search_without_repetitions_is_no_row() -> None:
    assert told(row(8, 0, 50, kind="search")).rows == ()
