"""What every watch is: one line before the loop, one in it, and what it saw."""

from abc import ABC, abstractmethod
from typing import Self

from batchlab.record import ALL, Reading
from batchlab.spec import UserError


class Watch(ABC):
    """Looks at every `every`-th step of a loop, the first included; never changes it.

    `step` stands after a step's last backward pass, before gradients are clipped, unscaled, applied
    or zeroed, or the batch is changed in place. It waits for no device but in the first steps.
    Abstract: `_look` and `_prepare` are the kind's own.
    """

    def __init__(self, every: int) -> None:
        if every < 1:
            raise UserError(f"every={every}: 1 for every step, 10 for every tenth")
        self.every = every
        self.steps = 0
        self._on = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def step(self) -> None:
        """Measure this step if it is one of those, and make ready for the next."""
        if not self._on:
            return
        measured = self.steps % self.every == 0
        if measured:
            self._look()
        self.steps += 1
        if (next_one := self.steps % self.every == 0) != measured:
            self._prepare(next_one)

    def remove(self) -> None:
        """Stop measuring and take all hooks off; what was measured stays."""
        self._on = False
        self._prepare(False)

    @abstractmethod
    def readings(self) -> list[Reading]:
        """What it says now, for a writer; empty where it has measured nothing yet."""

    @abstractmethod
    def _look(self) -> None:
        """Measure the step."""

    @abstractmethod
    def _prepare(self, measured: bool) -> None:
        """Make ready for a step that is measured, or for one that is not."""


def flat(readings: list[Reading]) -> dict[str, float]:
    """Readings under one name each: the quantity's, with `/layer` unless it is of all of them."""
    return {r.name if r.layer == ALL else f"{r.name}/{r.layer}": float(r.value) for r in readings}
