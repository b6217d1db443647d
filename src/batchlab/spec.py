"""What a user may ask for: phases, schedules, training and trials specs, protocols.

A spec is frozen, goes to JSON and back, and its key is the SHA-256 of its canonical JSON: two
specs with one key are one run. Every value a user can give is checked here, before anything runs.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import ceil
from typing import Annotated, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

OptimizerName = Literal["sgd", "adam", "adamw"]
Initialisation = Literal["glorot_uniform", "glorot_normal", "he_uniform", "lecun_normal", "torch"]
Dtype = Literal["float32", "float64"]
Matmul = Literal["float32", "bf16", "tf32"]
Convention = Literal[
    "mean-frozen", "sum-frozen", "mean-stepping", "sum-stepping", "mean-last", "sum-last"
]
MATMULS: tuple[Matmul, ...] = get_args(Matmul)
OPTIMIZERS: tuple[OptimizerName, ...] = get_args(OptimizerName)
CONVENTIONS: tuple[Convention, ...] = get_args(Convention)

MOST_RATE = 1e38  # single precision, in which steps are taken, ends at 3.4e38


def _in_single_precision(rate: float) -> float:
    if rate > MOST_RATE:
        raise ValueError(f"must be at most {MOST_RATE:g}")
    return rate


PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Rate = Annotated[PositiveFloat, AfterValidator(_in_single_precision)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class UserError(ValueError):
    """The user asked for something impossible; the message is one line that says what is right."""


def one_line(error: ValidationError, *, option: bool = False) -> str:
    """The first problem pydantic found, as `field: problem (got value)` or `--field: ...`."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if option and where:
        where = f"--{first['loc'][0]}".replace("_", "-")
    problem = first["msg"].removeprefix("Value error, ")
    got = "" if isinstance(first["input"], dict) else f" (got {first['input']!r})"
    return f"{where}: {problem}{got}" if where else problem


def one_of(name: str, value: str, allowed: Sequence[str]) -> str:
    """`value` where it is allowed; else a `UserError` that names every allowed one."""
    if value not in allowed:
        raise UserError(f"{name}: unknown {value!r}; choose from {', '.join(allowed)}")
    return value


def parse_sizes(text: str) -> tuple[int, ...]:
    """Batch sizes from `1,2,64`; raises `UserError` where these are not whole numbers."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UserError(
            f"--batch-sizes {text!r}: must be whole numbers separated by commas, like 1,2,64"
        ) from None


def check_matmul(matmul: str, device: str) -> None:
    """Raises `UserError` where matrix products can't be made that way on the device."""
    one_of("--matmul", matmul, MATMULS)
    if matmul == "tf32" and not device.startswith("cuda"):
        raise UserError("--matmul tf32: needs --device cuda; a CPU has float32 and bf16")


class Frozen(BaseModel):
    """Immutable, strict, no unknown fields."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    def canonical(self) -> str:
        """JSON with sorted keys and no spaces: the text that the key is the hash of."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))

    @property
    def key(self) -> str:
        """SHA-256 of the canonical JSON, 64 hexadecimal digits."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()


class Optimizer(Frozen):
    """An optimizer's settings; the learning rate belongs to the phase."""

    name: OptimizerName = "sgd"
    momentum: Fraction = 0.0
    weight_decay: NonNegativeFloat = 0.0  # L2 in the gradient for sgd and adam, decoupled for adamw
    beta1: Fraction = 0.9
    beta2: Fraction = 0.999

    @field_validator("momentum")
    @classmethod
    def _momentum_is_for_sgd(cls, momentum: float, info: ValidationInfo) -> float:
        name = info.data.get("name", "sgd")  # none where it is wrong itself
        if momentum and name != "sgd":
            raise ValueError(f"momentum is for sgd; {name} has beta1")
        return momentum

    @property
    def plain(self) -> bool:
        """No state and no decay: the update is minus the rate times the gradient."""
        return self.name == "sgd" and not self.momentum and not self.weight_decay


class Phase(Frozen):
    """So many epochs, or so many steps, at one batch size, learning rate and optimizer."""

    batch_size: Count
    learning_rate: Rate
    epochs: Count | None = None
    steps: Count | None = None
    optimizer: Optimizer = Optimizer()

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("a phase has either epochs or steps")
        return self

    @classmethod
    def parse(cls, text: str, optimizer: Optimizer | None = None, *, name: str = "phase") -> Self:
        """A phase from `B:LR:EPOCHS`, for example `64:0.01:30`.

        Raises `UserError` where the text is malformed or a value is out of range; `name` is what
        it says that the text is.
        """
        parts = text.split(":")
        form = "B:LR:EPOCHS (whole number : positive number : whole number), like 64:0.01:30"
        if len(parts) != 3:
            raise UserError(f"{name} {text!r}: must be {form}")
        try:
            batch_size, rate, epochs = int(parts[0]), float(parts[1]), int(parts[2])
        except ValueError:
            raise UserError(f"{name} {text!r}: must be {form}") from None
        try:
            return cls(
                batch_size=batch_size,
                learning_rate=rate,
                epochs=epochs,
                optimizer=optimizer or Optimizer(),
            )
        except ValidationError as error:
            raise UserError(f"{name} {text!r}: {one_line(error)}") from None

    def step_count(self, samples: int) -> int:
        """Steps of this phase on `samples` training samples; the last short batch is a step."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return self.epochs * ceil(samples / self.batch_size)

    def label(self) -> str:
        """`B=64 lr=0.01 x30`, with the optimizer's name where it is not SGD."""
        length = f"x{self.epochs}" if self.epochs else f"for {self.steps} steps"
        name = "" if self.optimizer.name == "sgd" else f"{self.optimizer.name} "
        return f"{name}B={self.batch_size} lr={self.learning_rate:g} {length}"


class Cadence(Frozen):
    """When a run is measured, beside its start and the end of every phase.

    `every`: loss, accuracy and weights after each so many full epochs.
    `steps`: the weights alone (distance, norm, cosine) after these steps.
    """

    every: Count = 1
    steps: tuple[Count, ...] = ()

    @field_validator("steps")
    @classmethod
    def _increasing(cls, steps: tuple[int, ...]) -> tuple[int, ...]:
        if any(a >= b for a, b in pairwise(steps)):
            raise ValueError("steps must increase")
        return steps

    @classmethod
    def doubling(cls, every: int = 1, last: int = 2**20) -> Self:
        """Every so many epochs, and the weights at steps 1, 2, 4, 8, ... up to `last`."""
        return cls(every=every, steps=tuple(2**k for k in range(last.bit_length())))


class Model(Frozen):
    """A multilayer perceptron with ReLU; input and output sizes are the data's."""

    hidden: tuple[Count, ...]
    initialisation: Initialisation = "glorot_uniform"


class TrainSpec(Frozen):
    """One training run: workload, model, schedule, seed and what to measure when."""

    kind: Literal["train"] = "train"
    workload: str
    model: Model
    schedule: tuple[Phase, ...] = Field(min_length=1)
    seed: Seed
    cadence: Cadence = Cadence()
    dtype: Dtype = "float32"
    matmul: Matmul = "float32"  # what products round their factors to, in training and evaluation

    @model_validator(mode="after")
    def _double_is_not_rounded(self) -> Self:
        if self.matmul != "float32" and self.dtype == "float64":
            raise ValueError(f"matmul {self.matmul} is for dtype float32")
        return self

    def step_count(self, samples: int) -> int:
        """All steps of the schedule on `samples` training samples."""
        return sum(phase.step_count(samples) for phase in self.schedule)

    def cut(self, steps: int, samples: int) -> Self:
        """The same run ended after `steps` steps, where it is longer than that."""
        phases: list[Phase] = []
        left = steps
        for phase in self.schedule:
            length = phase.step_count(samples)
            if left <= 0:
                break
            if length > left:
                phase = phase.model_copy(update={"epochs": None, "steps": left})
            phases.append(phase)
            left -= length
        return self.model_copy(update={"schedule": tuple(phases)})

    def check(self, samples: int) -> None:
        """Raise `UserError` where a batch is larger than the training data."""
        for phase in self.schedule:
            if phase.batch_size > samples:
                raise UserError(
                    f"batch size {phase.batch_size} is larger than the {samples} training samples "
                    f"of {self.workload}; choose 1 to {samples}"
                )


LEAST_DETAILED = 4  # samples a draw: moments are estimated from the two halves' pairs


class TrialsSpec(Frozen):
    """Gradient trials from the end of a training run.

    A trial draws `samples` training samples without replacement and passes over them once at
    every batch size, each from the same start (common random numbers). Every draw is passed in
    `orders` different orders. A batch size that does not divide `samples` keeps its last short
    batch. All conventions of a pass come from one trajectory, so they are named, not re-run.
    In the first `detailed` draws every layer is measured, in the others the last one alone; these
    draws also measure directions, the samples' own gradients and the first-order theory.
    """

    kind: Literal["trials"] = "trials"
    start: TrainSpec
    batch_sizes: tuple[Count, ...] = Field(min_length=1)
    samples: Count
    draws: Count
    orders: Count = 1
    learning_rate: Rate
    conventions: tuple[Convention, ...] = Field(default=CONVENTIONS, min_length=1)
    detailed: Annotated[int, Field(ge=0)] = 0

    @field_validator("batch_sizes")
    @classmethod
    def _distinct(cls, sizes: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(sizes)) != len(sizes):
            raise ValueError("batch sizes must be distinct")
        return sizes

    @property
    def trials(self) -> int:
        """Passes at each batch size."""
        return self.draws * self.orders

    def step_count(self, samples: int) -> int:  # noqa: ARG002, one signature with TrainSpec
        """Steps of all trials at all batch sizes; the training before them is another run's."""
        return self.trials * sum(ceil(self.samples / size) for size in self.batch_sizes)

    def check(self, samples: int) -> None:
        """Raise `UserError` where a trial wants more than the data have."""
        self.start.check(samples)
        self.check_samples(samples)
        for size in self.batch_sizes:
            if size > self.samples:
                raise UserError(
                    f"batch size {size} is larger than the {self.samples} samples of a trial; "
                    f"choose 1 to {self.samples}"
                )

    def check_samples(self, samples: int) -> None:
        """Raise `UserError` where a trial has more samples than the data, or too few."""
        if self.samples > samples:
            raise UserError(
                f"{self.samples} samples a trial are more than the {samples} training samples "
                f"of {self.start.workload}; choose 1 to {samples}"
            )
        if self.detailed and self.samples < LEAST_DETAILED:
            raise UserError(
                f"{self.samples} samples a trial are too few for detailed draws; choose "
                f"{LEAST_DETAILED} or more, or no detailed draws"
            )


Spec = TrainSpec | TrialsSpec


def parse_spec(text: str) -> Spec:
    """A spec from its JSON; raises `UserError` where it is not one."""
    try:
        if json.loads(text)["kind"] == "trials":
            return TrialsSpec.model_validate_json(text)
        return TrainSpec.model_validate_json(text)
    except ValidationError as error:
        raise UserError(f"spec: {one_line(error)}") from None
    except (ValueError, KeyError, TypeError):
        raise UserError("spec: not the JSON of a training or trials spec") from None


class Protocol(Frozen):
    """How the article's experiments are run on one workload: the contrasts, not the results."""

    workload: str
    train_samples: Count
    model: Model
    tiny: Count  # the article's 2
    small: Count  # 64
    middle: Count  # 256
    large: Count  # 1024
    learning_rate: Rate
    high_learning_rate: Rate
    epochs: Count
    early_epochs: Count  # the gradient study's early checkpoint; the late one is at `epochs`
    trial_batch_sizes: tuple[Count, ...]
    trial_samples: Count
    draws: Count
    detailed: Count  # of the draws: those in which every layer is measured, and directions
    crossed: Count  # so many draws, each in as many orders: what either adds to the spread
    crossed_batch_sizes: tuple[Count, ...]
    weight_decays: tuple[PositiveFloat, ...]  # decoupled, for AdamW
    matmul: Matmul = "float32"

    def smoke(self) -> Self:
        """The same contrasts, cut to what a quick check needs."""
        return self.model_copy(
            update={
                "epochs": max(3, self.epochs // 10),
                "early_epochs": 1,
                "draws": 4,
                "detailed": 3,
                "crossed": 3,
            }
        )

    def with_draws(self, draws: int) -> Self:
        """The same with so many draws of samples in the gradient trials."""
        fewer = {name: min(draws, getattr(self, name)) for name in ("detailed", "crossed")}
        return self.model_copy(update={"draws": draws, **fewer})

    def spec(self, schedule: Sequence[Phase], seed: int, cadence: Cadence) -> TrainSpec:
        """A training run of this workload's model."""
        return TrainSpec(
            workload=self.workload,
            model=self.model,
            schedule=tuple(schedule),
            seed=seed,
            cadence=cadence,
            matmul=self.matmul,
        )

    def matched_epochs(self, batch_size: int) -> int:
        """Epochs at `batch_size` that take as many steps as `small` takes in `epochs`."""
        return self.epochs * batch_size // self.small


def batch_slices(samples: int, batch_size: int) -> Iterator[slice]:
    """Consecutive slices of `batch_size`, the last one as short as it must be."""
    for start in range(0, samples, batch_size):
        yield slice(start, min(start + batch_size, samples))
