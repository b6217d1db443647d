"""Specs: canonical, strict, and every user value checked."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from batchlab.spec import (
    CONVENTIONS,
    Cadence,
    Model,
    Optimizer,
    Phase,
    TrainSpec,
    TrialsSpec,
    UserError,
    batch_slices,
    parse_spec,
)

PHASE = Phase(batch_size=8, learning_rate=0.01, epochs=3)
SPEC = TrainSpec(workload="digits", model=Model(hidden=(16,)), schedule=(PHASE,), seed=0)
TRIALS = TrialsSpec(start=SPEC, batch_sizes=(1, 4), samples=16, draws=2, learning_rate=0.01)


def test_bf16_is_another_run_and_not_for_double() -> None:
    rounded = TrainSpec.model_validate({**SPEC.model_dump(), "matmul": "bf16"})
    assert rounded.key != SPEC.key
    with pytest.raises(ValidationError, match="bf16 is for dtype float32"):
        TrainSpec.model_validate({**SPEC.model_dump(), "matmul": "bf16", "dtype": "float64"})


def test_json_both_ways() -> None:
    for spec in (SPEC, TRIALS):
        again = parse_spec(spec.canonical())
        assert again == spec
        assert again.key == spec.key


def test_key_is_of_the_content_alone() -> None:
    same = TrainSpec.model_validate_json(json.dumps(json.loads(SPEC.canonical())))
    assert same.key == SPEC.key
    assert SPEC.model_copy(update={"seed": 1}).key != SPEC.key
    assert len(SPEC.key) == 64


def test_specs_are_frozen_and_strict() -> None:
    with pytest.raises(ValidationError):
        SPEC.seed = 3
    with pytest.raises(ValidationError):
        TrainSpec.model_validate({**SPEC.model_dump(), "sed": 1})
    with pytest.raises(ValidationError):
        Phase(batch_size="8", learning_rate=0.1, epochs=1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "64",
        "64:0.01",
        "64:0.01:30:1",
        "a:0.01:30",
        "64:b:30",
        "64:0.01:c",
        "6.5:0.01:30",
        "0:0.01:30",
        "-4:0.01:30",
        "64:-0.01:30",
        "64:0:30",
        "64:nan:30",
        "64:inf:30",
        "64:0.01:0",
        "64:0.01:-1",
        "nan:0.01:30",
    ],
)
def test_malformed_phase(text: str) -> None:
    with pytest.raises(UserError) as raised:
        Phase.parse(text)
    assert repr(text) in str(raised.value)
    assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match=r"^--after "):
        Phase.parse(text, name="--after")


@given(st.integers(1, 10**6), st.floats(1e-9, 1e9), st.integers(1, 10**6))
def test_phase_text_round_trip(size: int, rate: float, epochs: int) -> None:
    phase = Phase.parse(f"{size}:{rate!r}:{epochs}")
    assert (phase.batch_size, phase.learning_rate, phase.epochs) == (size, rate, epochs)


def test_phase_has_one_length() -> None:
    with pytest.raises(ValidationError, match="either epochs or steps"):
        Phase(batch_size=1, learning_rate=0.1)
    with pytest.raises(ValidationError, match="either epochs or steps"):
        Phase(batch_size=1, learning_rate=0.1, epochs=1, steps=1)


def test_momentum_is_for_sgd() -> None:
    assert not Optimizer(momentum=0.9).plain
    with pytest.raises(ValidationError, match="momentum is for sgd"):
        Optimizer(name="adam", momentum=0.9)


def test_step_counts_keep_the_short_batch() -> None:
    assert PHASE.step_count(17) == 3 * 3
    assert SPEC.step_count(16) == 6
    assert TRIALS.step_count(100) == 2 * (16 + 4)
    assert [s.stop - s.start for s in batch_slices(10, 4)] == [4, 4, 2]


def test_cut() -> None:
    two = SPEC.model_copy(update={"schedule": (PHASE, PHASE)})
    assert two.cut(7, 16).step_count(16) == 7
    assert two.cut(2, 16).schedule[0].steps == 2
    assert two.cut(6, 16).schedule == (PHASE,)
    assert two.cut(99, 16) == two


def test_batch_larger_than_the_data() -> None:
    SPEC.check(8)
    with pytest.raises(UserError, match="larger than the 7 training samples"):
        SPEC.check(7)
    with pytest.raises(UserError, match="16 samples a trial are more than"):
        TRIALS.check(15)
    with pytest.raises(UserError, match="larger than the 16 samples of a trial"):
        TRIALS.model_copy(update={"batch_sizes": (17,)}).check(100)


def test_cadence_steps_increase() -> None:
    assert Cadence.doubling(last=8).steps == (1, 2, 4, 8)
    with pytest.raises(ValidationError, match="must increase"):
        Cadence(steps=(2, 2))


def test_trials_name_conventions() -> None:
    assert TRIALS.conventions == CONVENTIONS
    with pytest.raises(ValidationError):
        TrialsSpec.model_validate({**TRIALS.model_dump(), "conventions": ("mean",)})
    with pytest.raises(ValidationError, match="distinct"):
        TrialsSpec.model_validate({**TRIALS.model_dump(), "batch_sizes": (1, 1)})


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"kind": "x"}', '{"kind": "train"}'])
def test_not_a_spec(text: str) -> None:
    with pytest.raises(UserError, match=r"^spec: "):
        parse_spec(text)


def test_no_infinite_rates() -> None:
    for rate in (math.nan, math.inf, 1e39, 0.0, -1.0):
        with pytest.raises(ValidationError):
            Phase(batch_size=1, learning_rate=rate, epochs=1)
        with pytest.raises(ValidationError):
            TrialsSpec.model_validate({**TRIALS.model_dump(), "learning_rate": rate})
