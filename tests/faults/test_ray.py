"""Ray's workers and nodes killed, and Ctrl-C: nothing lost, nothing different, nothing left."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from batchlab import jobs, runner
from batchlab.backends.base import Backend, Report, Wanted
from batchlab.backends.serial import Serial
from batchlab.jobs import Job, Outcome, Site
from batchlab.spec import Cadence, Model, Phase, TrainSpec, UserError
from batchlab.store.check import check
from batchlab.store.database import Store
from tests.backends.conftest import NO_RAY
from tests.faults.conftest import PATIENCE_S, nothing_left
from tests.faults.study import content
from tests.test_runner import Silent

ray: Any = pytest.importorskip("ray", reason=NO_RAY)
from batchlab.backends.ray import Ray  # noqa: E402, where there is one
from batchlab.backends.ray_cluster import SYSTEM  # noqa: E402

STEPS, STEP_S = 1500, 0.002  # of a job


@dataclass(frozen=True)
class Slow:
    """In the place of `jobs.execute`: seconds on any machine; leaves its process's number."""

    place: Path

    def __call__(self, job: Job, report: Report) -> list[Outcome]:
        (self.place / f"{os.getpid()}").touch()

        def slowly(steps: int) -> None:
            time.sleep(STEP_S * steps)
            report(steps)

        return jobs.execute(job, slowly)


class Watching(Silent):
    """Does something once, when so many jobs are in the middle of their work."""

    def __init__(self, jobs: int, act: Callable[[], None]) -> None:
        super().__init__()
        self._jobs, self._act, self.acted = jobs, act, False

    def advance(self, job: int, share: float) -> None:
        super().advance(job, share)
        middle = [share for share in self.shares.values() if 0.1 < share < 0.9]
        if len(middle) >= self._jobs and not self.acted:
            self.acted = True
            self._act()

    def finish(self, job: int) -> None:
        """What was done twice was heard of twice."""


def specs() -> list[TrainSpec]:
    """Each a job of its own."""
    phase = Phase(batch_size=48, learning_rate=0.01, steps=STEPS)
    return [
        TrainSpec(
            workload="digits",
            model=Model(hidden=(32 + seed,)),
            schedule=(phase,),
            seed=seed,
            cadence=Cadence(every=10),
        )
        for seed in range(3)
    ]


def run(root: Path, backend: Backend, progress: Silent) -> dict[str, Any]:
    with Store(root) as store:
        site = Site(store.root, None, "cpu", save_every_s=0.1)
        assert runner.run_all(specs(), store, backend, site, progress=progress) == len(specs())
    assert {damage.kind for damage in check(root)} <= {"leftover"}
    return content(root)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run(tmp_path_factory.mktemp("alone") / "store", Serial(1), Silent())


@pytest.fixture
def short() -> Iterator[str]:
    """A directory for Ray, whose sockets' paths have to be short."""
    with tempfile.TemporaryDirectory(prefix="faults") as name:
        yield name


@pytest.fixture
def slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "execute", Slow(tmp_path))


@pytest.mark.usefixtures("slow")
def test_a_worker_is_killed(tmp_path: Path, alone: dict[str, Any]) -> None:
    def kill() -> None:
        os.kill(min(int(path.name) for path in tmp_path.glob("[0-9]*")), signal.SIGKILL)

    watching = Watching(2, kill)
    assert run(tmp_path / "store", Ray(Wanted(2, 1)), watching) == alone
    assert watching.acted
    assert len(list(tmp_path.glob("[0-9]*"))) == 3  # two, and the one in place of the first


@pytest.mark.usefixtures("slow")
def test_a_node_goes_away(
    tmp_path: Path, alone: dict[str, Any], short: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_TMPDIR", short)
    part = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=part | {"_system_config": SYSTEM})
    try:
        node = cluster.add_node(**part)
        backend = Ray(Wanted(address=cluster.address))
        assert (backend.workers, backend.threads) == (2, 1)
        watching = Watching(2, lambda: cluster.remove_node(node, allow_graceful=False))
        assert run(tmp_path / "store", backend, watching) == alone
        assert watching.acted
    finally:
        cluster.shutdown()


def test_ctrl_c_leaves_nothing_behind(tmp_path: Path, short: str) -> None:
    words = ["train", "--phase", "2:0.01:150", "--threads", "1", "--json", "--save-every", "0.2"]
    words += ["--backend", "ray", "--workers", "1", "--store", "store"]
    process = subprocess.Popen(
        [sys.executable, "-m", "batchlab", *words],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"TMPDIR": short},
        start_new_session=True,
        text=True,
    )
    partial = tmp_path / "store" / "partial"
    end = time.monotonic() + PATIENCE_S
    while not list(partial.glob("*.safetensors")) and time.monotonic() < end:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE_S)
    nothing_left(Path(short))
    assert os.listdir(short) == []
    assert process.returncode == 130, err
    assert out == ""
    assert "stopped; what is finished is kept" in err
    assert "ray" not in err.lower()


def test_no_cluster_there() -> None:
    with pytest.raises(
        UserError, match=r"^--address 127.0.0.1:1: no cluster \(.*refused.*HOST:PORT"
    ):
        Ray(Wanted(address="127.0.0.1:1"))
