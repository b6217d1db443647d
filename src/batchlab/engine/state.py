"""Where a run stands: everything that is needed to go on as if it had never stopped."""

import json
from dataclasses import asdict, dataclass
from typing import Literal, Self

import torch

from batchlab.record import Record

RunStatus = Literal["running", "finished", "diverged"]


@dataclass(slots=True)
class Position:
    """How far a run has come. The data order needs no more than `epoch` and `epoch_step`."""

    phase: int = 0  # index into the schedule
    phase_step: int = 0  # steps taken in this phase
    epoch: int = 0  # passes over the data begun before the current one
    epoch_step: int = 0  # steps taken in the current pass
    step: int = 0  # steps taken in all
    samples: int = 0  # samples seen in all


@dataclass(slots=True)
class RunState:
    """A run's tensors, position and records so far; the last one is the run's result."""

    tensors: dict[str, torch.Tensor]  # `model/...` and `optimizer/...`
    position: Position
    records: list[Record]
    status: RunStatus
    seconds: float = 0.0  # spent training and measuring, interruptions left out

    def meta(self) -> dict[str, str]:
        """All but the tensors, as text; floats survive the round trip to the bit."""
        return {
            "position": json.dumps(asdict(self.position)),
            "records": json.dumps(self.records),
            "status": self.status,
            "seconds": repr(self.seconds),
        }

    @classmethod
    def from_parts(cls, tensors: dict[str, torch.Tensor], meta: dict[str, str]) -> Self:
        """The state from its tensors and what `meta` gave; `ValueError` where it is damaged."""
        try:
            status = meta["status"]
            if status not in ("running", "finished", "diverged"):
                raise ValueError(f"status {status!r}")
            return cls(
                tensors=tensors,
                position=Position(**json.loads(meta["position"])),
                records=[Record(*row) for row in json.loads(meta["records"])],
                status=status,  # type: ignore[arg-type]
                seconds=float(meta["seconds"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not the state of a run: {error}") from None

    def group(self, name: str) -> dict[str, torch.Tensor]:
        """The tensors under `name/`, without that prefix."""
        prefix = f"{name}/"
        return {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}
