"""A study that takes about a second, and what it comes to."""

import json
import sqlite3
from pathlib import Path
from typing import Any

from batchlab.archive import Request, findings
from batchlab.spec import Model
from batchlab.store.database import FILE, Store
from batchlab.workloads import workload

RUNS = "SELECT key, kind, spec, status, steps, final, records, trials, bins FROM run ORDER BY key"
ROWS = "SELECT run.key, {0}.* FROM {0} JOIN run ON run.id = {0}.run ORDER BY run.key, {0}.rowid"


def request(seeds: int = 2) -> Request:
    """Shared starts, switches, stacks of replicas, trials after two checkpoints."""
    protocol = workload("digits").protocol.model_copy(
        update={
            "model": Model(hidden=(16,)),
            "tiny": 40,
            "small": 64,
            "middle": 200,
            "large": 400,
            "epochs": 2,
            "early_epochs": 1,
            "trial_batch_sizes": (16, 64),
            "trial_samples": 64,
            "draws": 4,
            "detailed": 1,
            "crossed": 2,
            "crossed_batch_sizes": (16, 64),
        }
    )
    return Request(protocol=protocol, seeds=seeds, studies=("batch-size", "switching", "gradient"))


def content(root: Path) -> dict[str, Any]:
    """Everything in the store but times, from the file itself, and what it says."""
    db = sqlite3.connect(root / FILE)
    try:
        told: dict[str, Any] = {"run": db.execute(RUNS).fetchall()}
        for table in ("record", "trial", "bin"):
            rows = db.execute(ROWS.format(table)).fetchall()
            told[table] = [(key, *values) for key, _, *values in rows]
    finally:
        db.close()
    with Store(root, create=False) as store:
        told["findings"] = json.dumps([finding.json() for finding in findings(store)])
    return told
