"""How long a run may go on: samples, epochs or seconds."""

import re
from dataclasses import dataclass
from math import ceil, inf
from typing import Literal, get_args

from batchlab.spec import UserError

Unit = Literal["samples", "epochs", "seconds"]
UNITS: dict[str, Unit] = {"": "samples", "e": "epochs", "s": "seconds"}  # by their first letter
LEAST_STEPS = 16  # fewer show no course


@dataclass(frozen=True, slots=True)
class Budget:
    """In seconds it depends on the machine, and so do the results."""

    amount: float
    unit: Unit

    @classmethod
    def parse(cls, text: "str | int | Budget") -> "Budget":
        """`20000` samples, `10e` or `10epochs`, `60s` or `60seconds`; else raises `UserError`."""
        if isinstance(text, Budget):
            return text
        pattern = r"(\d+\.?\d*(?:e\d+)?|\.\d+)\s*(samples?|e(?:p|pochs?)?|s(?:econds?)?|)"
        found = re.fullmatch(pattern, str(text).strip())
        if found is None or not 0 < float(found[1]) < inf:
            raise UserError(
                f"--budget {text!r}: must be samples (20000), epochs (10e) or seconds (60s)"
            )
        unit = "" if found[2].startswith("sa") else found[2][:1]
        return cls(float(found[1]), UNITS[unit])

    def samples(self, count: int) -> int:
        """What a run may see, of data of `count` samples; `UserError` in seconds, or under one."""
        if self.unit == "seconds":
            raise UserError(f"--budget {self}: must be samples (60000) or epochs (40e) here")
        told = round(self.amount * (count if self.unit == "epochs" else 1))
        if told < 1:
            raise UserError(f"--budget {self}: {told} samples; must be at least one")
        return told

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
