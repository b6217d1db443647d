"""How long the run of the present setting goes on, which sets the cost of everything after it."""

from dataclasses import dataclass
from math import ceil, inf
from typing import Literal, get_args

from batchlab.spec import UserError

Unit = Literal["samples", "epochs", "seconds"]
SUFFIXES: dict[str, Unit] = {"": "samples", "e": "epochs", "s": "seconds"}
LEAST_STEPS = 16  # fewer show no course


@dataclass(frozen=True, slots=True)
class Budget:
    """Of the present setting's run. In seconds it depends on the machine, and so do the results."""

    amount: float
    unit: Unit

    @classmethod
    def parse(cls, text: "str | int | Budget") -> "Budget":
        """`20000` samples, `10e` epochs, `60s` seconds; raises `UserError` for anything else."""
        if isinstance(text, Budget):
            return text
        said = str(text).strip()
        number, suffix = (said[:-1], said[-1:]) if said[-1:] in ("e", "s") else (said, "")
        try:
            amount = float(number)
        except ValueError:
            amount = -1.0
        if not 0 < amount < inf:
            raise UserError(
                f"--budget {text!r}: must be samples (20000), epochs (10e) or seconds (60s)"
            )
        return cls(amount, SUFFIXES[suffix])

    def steps(self, batch_size: int, samples: int, step_seconds: float) -> int:
        """Steps of `batch_size`, of data of so many samples; raises `UserError` under 16."""
        per_step = {"samples": batch_size, "epochs": batch_size / samples, "seconds": step_seconds}
        steps = ceil(self.amount / per_step[self.unit])
        if steps < LEAST_STEPS:
            raise UserError(
                f"--budget {self}: {steps} steps of {batch_size} samples; must be at least "
                f"{LEAST_STEPS} steps ({LEAST_STEPS * batch_size} samples)"
            )
        return steps

    def __str__(self) -> str:
        assert self.unit in get_args(Unit)
        return f"{self.amount:g} {self.unit}"


DEFAULT = Budget(10, "epochs")
