"""What Ray alone has: nodes with room, GPUs, versions; and nothing of its own in our output."""

import os
import sys
import time
from typing import Any

import pytest

from batchlab.backends import BACKENDS
from batchlab.backends.base import Report, Wanted
from batchlab.laboratory import choose_backend
from batchlab.spec import UserError
from tests.backends.conftest import NO_RAY
from tests.backends.test_backends import double

ray: Any = pytest.importorskip("ray", reason=NO_RAY)
from batchlab.backends import ray as ray_backend  # noqa: E402, where there is one
from batchlab.backends import ray_cluster, ray_worker  # noqa: E402


def done(wanted: Wanted, items: int = 1) -> dict[int, int]:
    results = BACKENDS["ray"](wanted).map(
        double, list(range(items)), progress=lambda *_: None, stopping=lambda: False
    )
    return dict(results)


def test_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "batchlab.backends.ray")
    with pytest.raises(UserError, match=r"^--backend ray: needs Ray; pip install 'batchlab\[ray]'"):
        BACKENDS["ray"](Wanted())


@pytest.mark.usefixtures("one_ray")
@pytest.mark.parametrize(
    ("wanted", "needs"),
    [
        (Wanted(1, 3), "3 CPU, and"),
        (Wanted(1, 1, memory_per_job=2**30), f"1 CPU, {2**30} MiB, and"),
        (Wanted(None, 1, memory_per_job=2**30), f"1 CPU, {2**30} MiB, and"),
    ],
)
def test_a_job_that_no_node_has_room_for(wanted: Wanted, needs: str) -> None:
    with pytest.raises(UserError, match=rf"a job needs {needs} no node has that \(they have 2 CPU"):
        done(wanted)


@pytest.mark.usefixtures("one_ray")
def test_nor_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that is gone may come again, but not for ever."""
    rooms = iter([1])
    monkeypatch.setattr(ray_backend, "room", lambda _: next(rooms, 0))
    monkeypatch.setattr(ray_backend, "LOOK_S", 0.0)
    monkeypatch.setattr(ray_backend, "ROOMLESS_S", 0.3)
    began = time.monotonic()
    with pytest.raises(UserError, match="3 CPU"):
        done(Wanted(1, 3))
    assert 0.3 < time.monotonic() - began < 30


def test_room() -> None:
    nodes = [
        {"Alive": True, "Resources": {"CPU": 7.0, "GPU": 1.0, "memory": 3e9}},
        {"Alive": True, "Resources": {"CPU": 16.0, "memory": 1e9}},
        {"Alive": False, "Resources": {"CPU": 99.0, "GPU": 9.0, "memory": 9e9}},
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray, "nodes", lambda: nodes)
        assert ray_cluster.room({"CPU": 2}) == 3 + 8
        assert ray_cluster.room({"CPU": 2, "memory": 1.5e9}) == 2
        assert ray_cluster.room({"CPU": 0.5, "GPU": 0.1}) == 10
        assert ray_cluster.room({"CPU": 17}) == 0


def visible(item: int, report: Report) -> str | None:  # noqa: ARG001
    return os.environ.get("CUDA_VISIBLE_DEVICES")


@pytest.mark.usefixtures("one_ray")
def test_a_part_of_a_gpu() -> None:
    backend = BACKENDS["ray"](Wanted(None, 1, "cuda", gpus_per_job=0.5))
    assert backend.workers == 2
    results = backend.map(visible, [0], progress=lambda *_: None, stopping=lambda: False)
    assert dict(results) == {0: "0"}
    assert BACKENDS["ray"](Wanted(None, 1, "cuda")).workers == 1


@pytest.mark.usefixtures("one_ray")
@pytest.mark.parametrize("name", ["batchlab", "torch"])
def test_another_version_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    here = ray_worker.versions()
    monkeypatch.setattr(ray_backend, "versions", lambda: here | {name: "99.0"})
    with pytest.raises(UserError) as refused:
        done(Wanted(1, 1))
    line = str(refused.value)
    assert "\n" not in line
    assert f"has batchlab {here['batchlab']}, torch {here['torch']}; must be" in line
    assert f"{name} 99.0" in line


@pytest.mark.usefixtures("one_ray")
def test_the_ear_may_die(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports on their way are lost, their units are not, and jobs can still be stopped."""
    tasks: list[Any] = []
    made = ray_backend._Tasks

    def noted(needs: dict[str, float]) -> Any:
        tasks.append(made(needs))
        return tasks[0]

    monkeypatch.setattr(ray_backend, "_Tasks", noted)
    heard: list[int] = []

    def progress(_: int, units: int) -> None:
        if not heard:
            ray.kill(tasks[0]._ear, no_restart=False)
        heard.append(units)

    results = BACKENDS["ray"](Wanted(1, 1)).map(
        count, [20], progress=progress, stopping=lambda: False
    )
    assert dict(results) == {0: 20}
    assert sum(heard) == 20


def count(item: int, report: Report) -> int:
    for _ in range(item):
        report(1)
        time.sleep(0.1)
    return item


@pytest.mark.parametrize(
    ("backend", "wanted", "line"),
    [
        ("ray", Wanted(address="ray://head:10001"), "--address ray://head:10001: must be HOST"),
        ("ray", Wanted(gpus_per_job=0.5), "--gpus-per-job: needs --device cuda"),
        ("ray", Wanted(device="cuda", gpus_per_job=1.5), "--gpus-per-job 1.5: must be above 0"),
        ("processes", Wanted(address="auto"), "--address: is for --backend ray"),
        ("serial", Wanted(gpus_per_job=0.5), "--gpus-per-job: is for --backend ray"),
        ("serial", Wanted(memory_per_job=5), "--memory-per-job: is for --backend ray"),
    ],
)
def test_what_is_not_to_be_had(backend: str, wanted: Wanted, line: str) -> None:
    with pytest.raises(UserError, match=f"^{line}"):
        choose_backend(backend, wanted)
