"""A study's records are the same to the bit wherever it runs."""

from pathlib import Path

import pytest

from batchlab.archive import Request
from batchlab.backends import BACKENDS
from batchlab.backends.base import Wanted
from batchlab.jobs import Site
from batchlab.laboratory import Bench, reproduce
from batchlab.spec import Model
from batchlab.store.database import Store
from batchlab.workloads import workload
from tests.faults.study import content
from tests.test_runner import Silent


def request() -> Request:
    """Branches, switches, stacks of replicas, the compiled loop, matrix products, trials."""
    smoke = workload("digits").protocol.smoke()
    update = {"model": Model(hidden=(16,)), "trial_batch_sizes": (1, 16), "trial_samples": 64}
    update |= {"crossed_batch_sizes": (1, 16), "detailed": 2, "crossed": 2}
    studies = ("batch-size", "switching", "gradient")
    return Request(protocol=smoke.model_copy(update=update), seeds=1, studies=studies)


def reproduced(root: Path, name: str) -> object:
    with Store(root) as store:
        site, progress = Site(store.root, None, "cpu"), Silent()
        backend = BACKENDS[name](Wanted(1 if name == "serial" else 2, 1))
        assert reproduce(request(), Bench(store, backend, site, progress)) > 5
    return content(root)


@pytest.fixture(scope="module")
def serial(tmp_path_factory: pytest.TempPathFactory) -> object:
    return reproduced(tmp_path_factory.mktemp("serial"), "serial")


def test_the_same_records_as_serial(tmp_path: Path, serial: object, name: str) -> None:
    assert reproduced(tmp_path, name) == serial
