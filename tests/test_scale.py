"""What docs/scale hands out: a cluster that Ray's launcher accepts, a Slurm script that goes on."""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from batchlab.cli import app

SCALE = Path(__file__).parent.parent / "docs" / "scale"
FAKES = {
    "scontrol": 'echo "scontrol $*" >> "$LOG"; [ "$1" = requeue ] || printf "n1\\nn2\\n"',
    "srun": 'echo "srun $*" >> "$LOG"',
    "ray": 'echo "ray $*" >> "$LOG"',
    "batchlab": """
        trap 'echo saved >> "$LOG"; exit 130' TERM
        echo "batchlab $*" >> "$LOG"
        [ -z "$WAIT" ] || while :; do sleep 0.05; done""",
}


def test_the_cluster_is_one_for_rays_launcher() -> None:
    ray: Any = pytest.importorskip("ray", reason="Ray isn't installed")
    import jsonschema
    import yaml

    cluster = yaml.safe_load((SCALE / "cluster.yaml").read_text())
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(cluster, schema)
    assert cluster["head_node_type"] in cluster["available_node_types"]
    wrong = cluster | {"provider": {}}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, schema)


@pytest.fixture
def job(tmp_path: Path) -> dict[str, str]:
    """The environment of a job on two nodes, with nothing real in it."""
    folder = tmp_path / "venv" / "bin"
    folder.mkdir(parents=True)
    (folder / "activate").write_text("")
    for name, body in FAKES.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (folder / name).chmod(0o755)
    return os.environ | {
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "LOG": str(tmp_path / "log"),
        "WAIT": "",
        "SHARED": str(tmp_path),
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "n[1-2]",
        "SLURM_NNODES": "2",
        "SLURM_CPUS_ON_NODE": "3",
        "SLURM_SUBMIT_DIR": str(tmp_path),
    }


def test_the_script_runs_the_study(job: dict[str, str]) -> None:
    subprocess.run(["bash", SCALE / "slurm.sh"], env=job, check=True, timeout=60)
    said = Path(job["LOG"]).read_text()
    assert "ray start --head --port=6379 --num-cpus=3" in said
    assert "srun --nodes=1 --ntasks=1 --exclude=n1 bash -c ray start --address=n1:6379" in said
    assert "--address n1:6379 --threads 1 --workers 6" in said
    assert "requeue" not in said
    known = {
        option
        for parameter in get_command(app).commands["reproduce"].params  # type: ignore[attr-defined]
        for option in parameter.opts
    }
    line = re.findall(r"^batchlab reproduce .*$", said, re.MULTILINE)[0]
    assert set(re.findall(r"--[a-z-]+", line)) <= known


def test_the_script_goes_on_when_its_time_is_up(job: dict[str, str]) -> None:
    process = subprocess.Popen(["bash", SCALE / "slurm.sh"], env=job | {"WAIT": "1"})
    log, end = Path(job["LOG"]), time.monotonic() + 60
    while not (log.exists() and "batchlab " in log.read_text()) and time.monotonic() < end:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 130
    assert log.read_text().splitlines()[-2:] == ["saved", "scontrol requeue 7"]
