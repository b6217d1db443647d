import pytest

from batchlab.spec import UserError
from batchlab.workloads.budget import Budget


@pytest.mark.parametrize(
    ("said", "steps"),
    [
        ("20000", 2500),
        ("2e4", 2500),
        ("20000 samples", 2500),
        ("10e", 1250),
        ("10epochs", 1250),
        ("10 epochs", 1250),
        (".5e", 63),
        ("60s", 600),
        ("60 seconds", 600),
    ],
)
def test_units(said: str, steps: int) -> None:
    assert Budget.parse(said).steps(batch_size=8, samples=1000, step_seconds=0.1) == steps


@pytest.mark.parametrize("said", ["", "x", "-3", "0", "10m", "nan", "inf", "e", "1e400"])
def test_what_is_none(said: str) -> None:
    with pytest.raises(UserError, match=r"--budget .* must be samples"):
        Budget.parse(said)


def test_too_few() -> None:
    with pytest.raises(UserError, match="must be at least 16 steps"):
        Budget.parse("64").steps(8, 1000, 0.1)
    with pytest.raises(UserError, match="0 samples; must be at least one"):
        Budget.parse("0.0001e").samples(1000)


def test_samples() -> None:
    assert Budget.parse("2.5e").samples(1000) == 2500
    assert Budget.parse("700").samples(1000) == 700
    with pytest.raises(UserError, match=r"must be samples .* or epochs"):
        Budget.parse("60s").samples(1000)
