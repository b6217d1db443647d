"""Starts processes that work on a store within milliseconds: forks of one that has imported all.

Reads `{"store", "backend", "log", "address", "environment"}` a line, and answers with the new
process's number. Each such process reproduces the study, appends what it begins to `log`, and ends
with a line that says how.
"""

import json
import os
import signal
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

from batchlab import jobs, runner
from batchlab.backends import BACKENDS
from batchlab.backends.base import Backend, Interrupted, Report, Wanted
from batchlab.backends.processes import Processes
from batchlab.jobs import Job, Outcome, Site, under_way_key
from batchlab.laboratory import Bench, reproduce
from batchlab.plan import Stretch
from batchlab.progress import Live
from batchlab.stopping import stopping
from batchlab.store.database import Store
from tests.faults.study import request

LOG = "BATCHLAB_FAULTS_LOG"  # in the environment, for Ray's processes too


def tell(**line: Any) -> None:
    with open(os.environ[LOG], "a") as file:  # short appends are not torn
        file.write(json.dumps({"pid": os.getpid(), **line}) + "\n")


def execute(job: Job, report: Report) -> list[Outcome]:
    for piece in job.pieces:
        runs = piece.runs if isinstance(piece, Stretch) else (piece.spec,)
        steps = piece.steps
        tell(began=under_way_key(piece), runs=[run.key for run in runs], steps=steps)
    return jobs.execute(job, report)


def work(store: Path, backend: str, address: str | None) -> None:
    made: Backend = (
        Processes(2, 1, "fork") if backend == "processes" else BACKENDS[backend](Wanted(2, 1))
    )
    with Store(store) as there, Live() as progress, stopping() as asked:
        often = 0.0 if address is None else 0.2  # over a network each takes a while
        site = Site(there.root, None, "cpu", often, address=address)
        trained = reproduce(request(), Bench(there, made, site, progress, asked))
    tell(ended="finished", trained=trained)


def child(asked: dict[str, Any]) -> None:
    os.environ[LOG] = asked["log"]
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    out = os.open(f"{asked['log']}.err", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    runner.execute = execute  # type: ignore[attr-defined]
    status = 0
    try:
        os.environ.update(asked["environment"])
        work(Path(asked["store"]), asked["backend"], asked["address"])
    except Interrupted:
        tell(ended="interrupted")
    except BaseException as error:
        traceback.print_exc()
        tell(ended=f"{type(error).__name__}: {error}")
        status = 1
    sys.stderr.flush()
    os._exit(status)


def main() -> None:
    with suppress(ImportError):
        import s3fs  # noqa: F401, takes a while; it does nothing before it is used
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the dead are gone at once
    for line in sys.stdin:
        number = os.fork()
        if number == 0:
            child(json.loads(line))
        print(number, flush=True)


if __name__ == "__main__":
    main()
