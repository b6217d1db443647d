"""What tests of several rooms use: the command line in this process, devices, a server of S3."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import pytest
import torch

from batchlab.cli import main

BUCKETS = count()  # that tests have had
# What starts Ray, which takes all cores for its own, and what kills processes: for one process.
TOGETHER = ("backends", "faults", "test_scale.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest comes first, or one of several processes would wait for it at the end."""
    items.sort(
        key=lambda item: (_room(item.nodeid) != "golden", _room(item.nodeid) not in TOGETHER)
    )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """A file's tests go to one process, as they share what is costly to make."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return "together" if _room(nodeid) in TOGETHER else nodeid.partition("::")[0]

    return ByFile(config, log)


def _room(nodeid: str) -> str:
    """The directory or file right under `tests`."""
    return nodeid.partition("::")[0].split("/")[1]


@dataclass
class Done:
    """What a command left behind."""

    returncode: int
    stdout: str
    stderr: str


class Call(Protocol):
    """Runs the command line in this process, in the test's own directory."""

    def __call__(self, *words: object) -> Done: ...


@pytest.fixture
def batchlab(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Call:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BATCHLAB_DATA_DIR", raising=False)

    def call(*words: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["batchlab", *(str(word) for word in words)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capfd.readouterr()
        return Done(int(ended.value.code or 0), out, err)

    return call


@pytest.fixture(
    params=[
        "cpu",
        pytest.param(
            "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
        ),
    ]
)
def device(request: pytest.FixtureRequest) -> torch.device:
    """The CPU, and a GPU where there is one."""
    return torch.device(request.param)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[dict[str, str]]:
    """A server of S3 on this machine, as the environment in which botocore uses it."""
    pytest.importorskip("s3fs", reason="no s3fs here: nothing is tested at s3://")
    moto = pytest.importorskip("moto.server", reason="no moto here: no server of S3 to test with")
    server = moto.ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "nothing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    }
    server.stop()


@pytest.fixture
def bucket(s3_server: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of an empty bucket of the test's own."""
    from s3fs import S3FileSystem

    for name, value in s3_server.items():
        monkeypatch.setenv(name, value)
    name = f"test-{next(BUCKETS)}"
    S3FileSystem().mkdir(name)
    return f"s3://{name}"


@pytest.fixture
def changed_s3(bucket: str) -> Iterator[str]:
    """A bucket for a test that changes the environment: a client has that of its first use."""
    from s3fs import S3FileSystem

    S3FileSystem.clear_instance_cache()
    yield bucket
    S3FileSystem.clear_instance_cache()


@pytest.fixture
def unreachable(changed_s3: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """An address at which nobody answers."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # as botocore counts; s3fs still has its own
    return f"{changed_s3}/a"
