"""`batchlab advise` from the command line: its JSON, and one line for whatever is wrong."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import Call

HEAD = """
import torch
from torch import nn
from torch.nn import functional as F
import batchlab
g = torch.Generator().manual_seed(0)
x = torch.randn(200, 6, generator=g)
y = x[:, :3].argmax(1)
def job(model=None, loss=F.cross_entropy, x=x, y=y, lr=0.1, batch_size=4, **more):
    model = model or nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    return batchlab.UserWorkload(
        model=model, train=(x, y), validation=(x, y), loss=loss, batch_size=batch_size,
        optimizer=torch.optim.SGD(model.parameters(), lr=lr), **more)
"""
WRONG = {
    "raises": ("raise ValueError('no disk')", "factory() raised ValueError: no disk"),
    "other thing": ("return 3", "factory() returned int; must return a batchlab.UserWorkload"),
    "sum": (
        "return job(loss=nn.CrossEntropyLoss(reduction='sum'))",
        'so a sum; must be the batch\'s mean (reduction="mean")',
    ),
    "no reduction": (
        "return job(loss=nn.CrossEntropyLoss(reduction='none'))",
        'must be the batch\'s mean, a scalar (reduction="mean")',
    ),
    "not finite": ("return job(x=x / 0)", "before any step; must be finite"),
    "small": ("return job(x=x[:6], y=y[:6])", "6 samples are fewer than two batches of 4"),
    "one": ("return job(batch_size=1)", "batch_size: got 1; must be 2 or more"),
    "diverges": ("return job(lr=1e12)", "diverges at step"),
    "target": ("return job(target=1e-12)", "not reached in 400 samples"),
    "reached": ("return job(target=1e12)", "reached before training"),
    "memory": ("return job()", "no micro-batch size can be measured"),
    "in a run": (
        "calls = []\n"
        "    def loss(output, target):\n"
        "        calls.append(not torch.is_grad_enabled())\n"  # evaluations, in the run mostly
        "        assert sum(calls) < 15, 'broken pipe'\n"
        "        return F.cross_entropy(output, target)\n"
        "    return job(loss=loss)",
        "training: failed with AssertionError: broken pipe",
    ),
}


@pytest.fixture(autouse=True)
def short_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchlab.advice.advise.MACHINE_S", 0.3)
    monkeypatch.setattr("batchlab.advice.advise.ROUNDS", 3)
    monkeypatch.setattr("batchlab.engine.machine.TURN_S", 0.002)


def written(folder: Path, body: str) -> Path:
    path = folder / "job_file.py"
    path.write_text(f"{HEAD}\ndef factory():\n    {body}\n")
    return path


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_one_line(name: str, batchlab: Call, tmp_path: Path) -> None:
    body, said = WRONG[name]
    more = ("--memory-cap", 1) if name == "memory" else ()
    if name == "memory":
        body = "return job(model=nn.Sequential(nn.Linear(6, 400000), nn.Linear(400000, 3)))"
    done = batchlab("advise", f"{written(tmp_path, body)}:factory", "--budget", 400, *more)
    assert done.returncode == 2
    assert done.stdout == ""
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("batchlab: ")
    assert said in last
    assert "Traceback" not in done.stderr
    kept = json.loads((tmp_path / "advice" / "advice.json").read_text())
    assert kept["status"] == "failed"
    assert said in kept["error"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nothing",), "must be digits, mnist, package.module:factory or file.py:factory"),
        (("digits", "--budget", "10m"), "--budget '10m': must be samples (20000)"),
        (("digits", "--seed", "-1"), "--seed -1: must be a whole number"),
        (("digits", "--device", "tpu"), "--device: unknown 'tpu'; choose from cpu, cuda"),
        (("digits", "--budget", "64"), "must be at least 16 steps (128 samples)"),
    ],
)
def test_options_that_are_wrong(words: tuple[str, ...], said: str, batchlab: Call) -> None:
    done = batchlab("advise", *words)
    assert done.returncode == 2
    assert said in done.stderr.strip().splitlines()[-1]


def test_json_is_one_document(batchlab: Call, tmp_path: Path) -> None:
    path = written(tmp_path, "return job()")
    done = batchlab("advise", f"{path}:factory", "--budget", "10e", "--json", "--out", "o")
    assert done.returncode == 0
    told = json.loads(done.stdout)
    assert set(told) == {"recommended", "evidence", "tested", "reason"}
    assert told["tested"] == "not tested"
    assert (tmp_path / "o" / "report.html").exists()


def test_help_is_quick_and_has_no_torch() -> None:
    code = (
        "import sys; sys.argv = ['batchlab', 'advise', '--help']\n"
        "from batchlab.cli import main\n"
        "try: main()\n"
        "except SystemExit: print('torch' in sys.modules)"
    )
    began = time.process_time()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--verify" in done.stdout
    assert done.stdout.strip().endswith("False")
    assert time.process_time() - began < 5
