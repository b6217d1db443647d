"""One Ray for all tests of this folder: a start takes seconds."""

from collections.abc import Iterator

import pytest

from batchlab.backends import BACKENDS

NO_RAY = "Ray isn't installed; pip install 'batchlab[ray]'"


@pytest.fixture(scope="package")
def one_ray() -> Iterator[None]:
    """Two CPUs, and a GPU that only Ray believes in."""
    pytest.importorskip("ray", reason=NO_RAY)
    from batchlab.backends.ray_cluster import connected

    with connected(None, 2, gpus=1):
        yield


@pytest.fixture(params=sorted(BACKENDS))
def name(request: pytest.FixtureRequest) -> str:
    """Every backend in turn."""
    if request.param == "ray":
        request.getfixturevalue("one_ray")
    return str(request.param)
