"""A laboratory for one question: what batch size should I use, and why?"""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchlab.spec import Cadence, Optimizer, Phase, TrainSpec, TrialsSpec, UserError

if TYPE_CHECKING:
    import pandas as pd

    from batchlab.advice.advise import advise
    from batchlab.integrations.plain import Distance, GradientNorm, NoiseScale
    from batchlab.workloads.objective import ACCURACY, Metric
    from batchlab.workloads.user import UserWorkload

__version__ = "0.1.0"
__all__ = [
    "ACCURACY",
    "Cadence",
    "Distance",
    "GradientNorm",
    "Metric",
    "NoiseScale",
    "Optimizer",
    "Phase",
    "TrainSpec",
    "TrialsSpec",
    "UserError",
    "UserWorkload",
    "advise",
    "train",
]
LAZY = {  # these want torch, which importing the package must not
    "ACCURACY": "batchlab.workloads.objective",
    "Distance": "batchlab.integrations.plain",
    "GradientNorm": "batchlab.integrations.plain",
    "Metric": "batchlab.workloads.objective",
    "NoiseScale": "batchlab.integrations.plain",
    "UserWorkload": "batchlab.workloads.user",
    "advise": "batchlab.advice.advise",
}


def __getattr__(name: str) -> Any:
    if name not in LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(LAZY[name]), name)


def train(
    workload: str,
    phases: Sequence[str | Phase],
    *,
    seed: int = 0,
    data_dir: Path | None = None,
) -> "pd.DataFrame":
    """Train a workload's model by a schedule and return what was measured on the way.

    `phases` are `Phase`s or texts `B:LR:EPOCHS`. One row a measurement, with the fields of
    `batchlab.record.Record`; `attrs["status"]` is `finished` or `diverged`. Raises `UserError`
    where a value is out of range.
    """
    import pandas as pd

    from batchlab.engine.data import load
    from batchlab.engine.train import train as run
    from batchlab.record import Record
    from batchlab.workloads import workload as find

    protocol = find(workload).protocol
    schedule = [Phase.parse(p) if isinstance(p, str) else p for p in phases]
    spec = protocol.spec(schedule, seed, Cadence.doubling())
    spec.check(protocol.train_samples)
    end = run(spec, load(workload, data_dir, "cpu", spec.dtype))
    frame = pd.DataFrame(end.records, columns=list(Record._fields))
    frame.attrs["status"] = end.status
    return frame
