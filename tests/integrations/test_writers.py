"""Every writer's file or run, read back by the framework's own reader."""

import json
import math
import sys
from pathlib import Path

import pytest

from batchlab.integrations.writers import JsonLines, MLflow, TensorBoard, WeightsAndBiases, Writer
from batchlab.record import ALL, Reading
from batchlab.spec import UserError

STEPS = {
    3: [Reading("noise_scale", ALL, 200.0), Reading("noise_scale", "0.weight", 150.5)],
    6: [Reading("noise_scale", ALL, 250.0)],
}
TOLD = {"noise_scale": [(3, 200.0), (6, 250.0)], "noise_scale/0.weight": [(3, 150.5)]}


def write(writer: Writer) -> None:
    for step, readings in STEPS.items():
        writer.write(step, readings)


@pytest.mark.parametrize("kind", [Path, str])
def test_json_lines(kind: type[Path] | type[str], tmp_path: Path) -> None:
    path = tmp_path / "watch.jsonl"
    with JsonLines(kind(path)) as writer:
        write(writer)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [Reading(r["name"], r["layer"], r["value"]) for r in rows] == STEPS[3] + STEPS[6]
    assert [r["step"] for r in rows] == [3, 3, 6]


def test_json_has_no_infinity(tmp_path: Path) -> None:
    path = tmp_path / "watch.jsonl"
    with JsonLines(path) as writer:
        writer.write(0, [Reading("noise_scale_high", ALL, v) for v in (math.inf, math.nan, 1.0)])

    def no(constant: str) -> None:
        pytest.fail(constant)

    rows = [json.loads(line, parse_constant=no) for line in path.read_text().splitlines()]
    assert [row["value"] for row in rows] == [None, None, 1.0]


@pytest.mark.filterwarnings("ignore")
def test_tensorboard(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with TensorBoard(tmp_path) as writer:
        write(writer)
    read = events.EventAccumulator(str(tmp_path)).Reload()
    told = {n: [(e.step, e.value) for e in read.Scalars(n)] for n in read.Tags()["scalars"]}
    assert told == TOLD


@pytest.mark.filterwarnings("ignore")
def test_mlflow(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy", reason="MLflow's store needs it")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/runs.db")
    mlflow.create_experiment("watch", artifact_location=str(tmp_path))
    mlflow.set_experiment("watch")
    with MLflow() as writer:
        write(writer)
    assert mlflow.active_run() is None
    client = mlflow.MlflowClient()
    for name, told in TOLD.items():
        history = client.get_metric_history(writer.run_id, name)
        assert [(m.step, m.value) for m in history] == told
    with mlflow.start_run() as run, MLflow() as writer:
        assert writer.run_id == run.info.run_id
        writer.close()
        assert mlflow.active_run() is not None  # it is the loop's own


@pytest.mark.filterwarnings("ignore")
def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    with WeightsAndBiases(project="watch", dir=str(tmp_path)) as writer:
        write(writer)
    wandb.teardown()  # what is under way to the file gets there
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    (log,) = run.glob("*.wandb")
    kept = log.read_bytes()
    assert all(text in kept for text in (b"noise_scale/0.weight", b"150.5", b"250"))
    assert b"150.6" not in kept


@pytest.mark.parametrize(
    ("make", "module", "extra"),
    [
        (lambda: TensorBoard(Path()), "torch.utils.tensorboard", "tensorboard"),
        (MLflow, "mlflow", "mlflow"),
        (WeightsAndBiases, "wandb", "wandb"),
    ],
)
def test_what_is_missing_is_told(
    make: type[Writer], module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"pip install batchlab\[{extra}\]"):
        make()
