"""Where readings go: JSON lines, TensorBoard, MLflow, Weights & Biases.

```
with JsonLines(Path("watch.jsonl")) as writer:
    ...
    writer.write(step, watch.readings())
```

A framework is imported when its writer is made; where it is missing, `UserError` says what to
install.
"""

import json
from math import isfinite
from pathlib import Path
from typing import IO, Any, Protocol, Self

from batchlab.integrations.base import flat
from batchlab.record import Reading
from batchlab.spec import UserError


class Writer(Protocol):
    """Takes readings step by step."""

    def write(self, step: int, readings: list[Reading]) -> None:
        """Write one step's readings."""

    def close(self) -> None:
        """Write what is not yet written."""


class _Closing:
    """Closes at the end of a `with`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Write what is not yet written."""
        raise NotImplementedError


class JsonLines(_Closing):
    """One object a reading: `step`, `name`, `layer`, `value`; appended to the file.

    JSON has no infinity and no nan: a value that is not finite is null.
    """

    def __init__(self, path: Path | str) -> None:
        path = Path(path)
        self._file: IO[str] = path.open("a", encoding="utf-8")

    def write(self, step: int, readings: list[Reading]) -> None:
        """Write one step's readings, and flush."""
        for r in readings:
            value = float(r.value) if isfinite(r.value) else None
            row = {"step": step, "name": r.name, "layer": r.layer, "value": value}
            self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorBoard(_Closing):
    """Scalars in an event file in `directory`."""

    def __init__(self, directory: Path | str) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError:
            raise _missing("TensorBoard", "tensorboard") from None
        self._writer = SummaryWriter(str(directory))

    def write(self, step: int, readings: list[Reading]) -> None:
        """Write one step's readings."""
        for name, value in flat(readings).items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is not yet written."""
        self._writer.close()


class MLflow(_Closing):
    """Metrics of the active run, or of a new one that ends with the writer."""

    def __init__(self) -> None:
        try:
            import mlflow
        except ModuleNotFoundError:
            raise _missing("MLflow", "mlflow") from None
        self._mlflow = mlflow
        active = mlflow.active_run()
        self._own = active is None
        self.run_id: str = (active or mlflow.start_run()).info.run_id

    def write(self, step: int, readings: list[Reading]) -> None:
        """Write one step's readings."""
        self._mlflow.log_metrics(flat(readings), step=step, run_id=self.run_id)

    def close(self) -> None:
        """End the run if it is the writer's own."""
        if self._own:
            self._mlflow.end_run()


class WeightsAndBiases(_Closing):
    """History of the active run, or of a new one (`wandb.init(**options)`) that ends here.

    Where another part of the loop logs to the same run, Weights & Biases wants steps in order.
    """

    def __init__(self, **options: Any) -> None:
        try:
            import wandb
        except ModuleNotFoundError:
            raise _missing("Weights & Biases", "wandb") from None
        self._own = wandb.run is None
        self.run: Any = wandb.run or wandb.init(**options)

    def write(self, step: int, readings: list[Reading]) -> None:
        """Write one step's readings."""
        self.run.log(flat(readings), step=step)

    def close(self) -> None:
        """End the run if it is the writer's own."""
        if self._own:
            self.run.finish()


def _missing(name: str, extra: str) -> UserError:
    return UserError(f"{name} is not there: pip install batchlab[{extra}]")
