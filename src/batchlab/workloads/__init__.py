"""The workloads by name: what can be trained without writing any code."""

from batchlab.spec import one_of
from batchlab.workloads.base import Workload
from batchlab.workloads.digits import Digits
from batchlab.workloads.mnist import Mnist

WORKLOADS: dict[str, Workload] = {"digits": Digits(), "mnist": Mnist()}


def workload(name: str) -> Workload:
    """The workload of that name; raises `UserError` where there is none."""
    return WORKLOADS[one_of("workload", name, list(WORKLOADS))]
