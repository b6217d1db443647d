"""The command line: parses, wires, prints. One JSON document on standard output with `--json`."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from pydantic import ValidationError

from batchlab import cli_store
from batchlab.backends import check_backend
from batchlab.backends.base import Interrupted, Wanted
from batchlab.cli_advise import advise
from batchlab.cli_bench import bench
from batchlab.cli_sweep import sweep
from batchlab.options import (
    Address,
    BackendName,
    CheckpointsAt,
    DataDir,
    Device,
    DryRun,
    GpusPerJob,
    Json,
    MatmulName,
    MemoryPerJob,
    SaveEvery,
    Seed,
    StoreDir,
    Threads,
    Workers,
    Workload,
    check_device,
    check_seed,
)
from batchlab.printing import say_findings, say_json, say_rows
from batchlab.progress import Live
from batchlab.spec import (
    CONVENTIONS,
    OPTIMIZERS,
    Cadence,
    Optimizer,
    Phase,
    Protocol,
    Spec,
    TrainSpec,
    TrialsSpec,
    UserError,
    check_matmul,
    one_line,
    one_of,
    parse_sizes,
)
from batchlab.stopping import stopping
from batchlab.store.address import given_address, try_address

if TYPE_CHECKING:
    from batchlab.archive import Request
    from batchlab.laboratory import Bench

app = typer.Typer(
    help="What batch size should I use, and why?",
    pretty_exceptions_enable=False,
    add_completion=True,
)

app.add_typer(cli_store.app, name="store")
app.command()(cli_store.runs)
app.command()(cli_store.findings)
app.command()(bench)
app.command()(sweep)
app.command()(advise)


def main() -> None:
    """Run the command line; a user's error is one line and exit status 2."""
    try:
        status = app(sys.argv[1:] or ["--help"], standalone_mode=False)
    except UserError as error:
        _fail(str(error), 2)
    except ValidationError as error:
        _fail(one_line(error, option=True), 2)
    except typer.TyperException as error:
        _fail(" ".join(error.format_message().split()), error.exit_code)
    except (Interrupted, typer.Abort, KeyboardInterrupt):
        _fail("stopped; what is finished is kept, the same command goes on from there", 130)
    sys.exit(status or 0)


@app.command()
def reproduce(
    workload: Workload = "digits",
    study: Annotated[list[str] | None, typer.Option(help="only these; repeatable")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="runs of every curve")] = 5,
    scale: Annotated[str, typer.Option(help="smoke (a quick check) or article")] = "article",
    matmul: MatmulName = "float32",
    trials: Annotated[
        int | None, typer.Option(min=4, help="draws of the gradient trials; else the workload's")
    ] = None,
    backend: BackendName = "processes",
    workers: Workers = None,
    threads: Threads = None,
    device: Device = "cpu",
    address: Address = None,
    gpus_per_job: GpusPerJob = None,
    memory_per_job: MemoryPerJob = None,
    data_dir: DataDir = None,
    save_every: SaveEvery = 30,
    store: StoreDir = None,
    checkpoints: CheckpointsAt = None,
    out: Annotated[Path, typer.Option(help="where the report goes")] = Path("out"),
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Run the article's studies and write the report; what is stored is not run again."""
    from batchlab import archive
    from batchlab.documents import writing
    from batchlab.listing import describe, runs_frame
    from batchlab.report.page import write_report
    from batchlab.store.database import Store
    from batchlab.studies import STUDIES

    began = time.monotonic()
    protocol = _protocol(workload, matmul, device)
    one_of("--scale", scale, ["smoke", "article"])
    chosen = tuple(dict.fromkeys(one_of("--study", s, list(STUDIES)) for s in study or STUDIES))
    if scale == "smoke":
        protocol = protocol.smoke()
    if trials is not None:
        protocol = protocol.with_draws(trials)
    request = archive.Request(protocol=protocol, seeds=seeds, studies=chosen)
    wanted = Wanted(workers, threads, device, address, gpus_per_job, memory_per_job)
    how = _How(backend, wanted, data_dir, save_every, given_address(checkpoints))
    root = store or out / "store"
    if dry_run:
        _say_plan(request.specs(), root, how, as_json)
        return
    stored = _stored(request, root)
    if not stored:
        _have_data(workload, None, how)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    trained = 0
    if not stored:
        from batchlab import laboratory as lab

        with _bench(root, how) as bench:
            trained = lab.reproduce(request, bench)
    with Store(root) as there:
        there.ask(request.canonical())  # where all was there for another request, too
        sections = archive.sections(request, there)
        rows = describe(there, [spec.key for spec in request.specs()])
        cover = archive.cover(request, scale, len(rows))
    with writing(out):
        page = write_report(sections, cover, runs_frame(rows), out)
    found = [finding for section in sections for finding in section.findings]
    seconds = round(time.monotonic() - began, 1)
    if as_json:
        told = [finding.json() for finding in found]
        say_json({"report": str(page), "trained": trained, "seconds": seconds, "findings": told})
        return
    say_findings([f.json() for f in _headlines(found)])
    for caution in archive.cautions(request):
        print(caution, file=sys.stderr)
    print(f"{trained} runs trained, {len(rows) - trained} from the store, {seconds} s")
    print(f"report: {page}")


@app.command()
def train(
    phase: Annotated[list[str], typer.Option(help="B:LR:EPOCHS; repeatable, in order")],
    workload: Workload = "digits",
    optimizer: Annotated[str, typer.Option(help="sgd, adam or adamw")] = "sgd",
    momentum: Annotated[float, typer.Option(help="sgd's")] = 0.0,
    weight_decay: Annotated[float, typer.Option(help="L2; decoupled for adamw")] = 0.0,
    steps: Annotated[int | None, typer.Option(min=1, help="end after so many steps")] = None,
    every: Annotated[int, typer.Option(min=1, help="epochs between measurements")] = 1,
    seed: Seed = 0,
    matmul: MatmulName = "float32",
    backend: BackendName = "serial",
    workers: Workers = None,
    threads: Threads = None,
    device: Device = "cpu",
    address: Address = None,
    gpus_per_job: GpusPerJob = None,
    memory_per_job: MemoryPerJob = None,
    data_dir: DataDir = None,
    save_every: SaveEvery = 30,
    store: StoreDir = None,
    checkpoints: CheckpointsAt = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Train one model by a schedule and say where it ended."""
    from batchlab import laboratory as lab

    chosen = _optimizer(optimizer, momentum, weight_decay)
    protocol = _protocol(workload, matmul, device)
    spec = _train_spec(protocol, "--phase", phase, chosen, seed, every, steps)
    wanted = Wanted(workers, threads, device, address, gpus_per_job, memory_per_job)
    how = _How(backend, wanted, data_dir, save_every, given_address(checkpoints))
    if dry_run:
        _say_plan([spec], store, how, as_json)
        return
    _have_data(workload, store, how)
    with _bench(store, how) as bench:
        told = lab.train_one(spec, bench)
    if as_json:
        say_json(told)
    else:
        say_rows([{k: v for k, v in told.items() if k not in ("key", "spec", "cos")}])


@app.command()
def trials(
    after: Annotated[list[str], typer.Option(help="B:LR:EPOCHS of the run to start from")],
    batch_sizes: Annotated[str, typer.Option(help="separated by commas")],
    workload: Workload = "digits",
    trials: Annotated[int, typer.Option(min=1, help="draws of samples")] = 50,
    orders: Annotated[int, typer.Option(min=1, help="orders in which each is passed")] = 1,
    samples: Annotated[int, typer.Option(min=1, help="samples of a trial")] = 1024,
    detailed: Annotated[
        int, typer.Option(min=0, help="draws in which every layer is measured")
    ] = 0,
    convention: Annotated[list[str] | None, typer.Option(help="all six by default")] = None,
    keep_tensors: Annotated[
        Path | None, typer.Option(help="new directory for the raw summed gradients, as .npy")
    ] = None,
    seed: Seed = 0,
    matmul: MatmulName = "float32",
    backend: BackendName = "serial",
    workers: Workers = None,
    threads: Threads = None,
    device: Device = "cpu",
    address: Address = None,
    gpus_per_job: GpusPerJob = None,
    memory_per_job: MemoryPerJob = None,
    data_dir: DataDir = None,
    save_every: SaveEvery = 30,
    store: StoreDir = None,
    checkpoints: CheckpointsAt = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Measure what a pass over fresh samples adds up to at each batch size."""
    from batchlab import laboratory as lab
    from batchlab.store.tensors import check_free

    protocol = _protocol(workload, matmul, device)
    start = _train_spec(protocol, "--after", after, Optimizer(), seed, 1, None)
    chosen = {one_of("--convention", name, CONVENTIONS) for name in convention or CONVENTIONS}
    spec = TrialsSpec(
        start=start,
        batch_sizes=parse_sizes(batch_sizes),
        samples=samples,
        draws=trials,
        orders=orders,
        learning_rate=start.schedule[-1].learning_rate,
        conventions=tuple(c for c in CONVENTIONS if c in chosen),
        detailed=min(detailed, trials),
    )
    _fits("--samples", spec.check_samples, protocol)
    _fits("--batch-sizes", spec.check, protocol)
    if keep_tensors is not None:
        check_free(keep_tensors, spec)
    wanted = Wanted(workers, threads, device, address, gpus_per_job, memory_per_job)
    how = _How(backend, wanted, data_dir, save_every, given_address(checkpoints), keep_tensors)
    if dry_run:
        _say_plan([spec], store, how, as_json)
        return
    _have_data(workload, store, how)
    with _bench(store, how) as bench:
        rows = lab.trials_one(spec, bench)
    if as_json:
        say_json(rows)
    else:
        say_rows(rows)


@dataclass(frozen=True, slots=True)
class _How:
    """The options that say how work is done, whatever the work; checked before anything is made."""

    backend: str
    wanted: Wanted
    data_dir: Path | None
    save_every: float
    checkpoints: str | None  # an address, where it is not the store
    tensors: Path | None = None

    def __post_init__(self) -> None:
        check_device(self.wanted.device)
        check_backend(self.backend, self.wanted)


def _fits(option: str, check: Callable[[int], None], protocol: Protocol) -> None:
    """Make a spec's check; what is wrong is told as this option's."""
    try:
        check(protocol.train_samples)
    except UserError as error:
        raise UserError(f"{option}: {error}") from None


def _have_data(workload: str, store: Path | None, how: _How) -> None:
    """Load the data, by the jobs' name for their place, before a new store is made for them."""
    from batchlab.engine.data import load
    from batchlab.store.database import FILE

    if store is None or not (store / FILE).exists():
        load(workload, how.data_dir and how.data_dir.absolute(), "cpu", "float32")


@contextmanager
def _bench(store: Path | None, how: _How, *, look: bool = False) -> Iterator["Bench"]:
    """A bench as the options ask for it, with a live progress and Ctrl-C heard."""
    from batchlab import laboratory as lab
    from batchlab.jobs import Site

    backend = lab.choose_backend(how.backend, how.wanted)
    if how.checkpoints is not None and not look:
        try_address(how.checkpoints)
    with lab.open_store(store, look=look) as there, Live() as progress, stopping() as asked:
        device = how.wanted.device
        site = Site(there.root, how.data_dir, device, how.save_every, how.tensors, how.checkpoints)
        yield lab.Bench(there, backend, site, progress, asked)


def _stored(request: "Request", root: Path) -> bool:
    """Whether the store has all of it; nothing heavy is imported to tell."""
    from batchlab import archive
    from batchlab.store.database import FILE, Store

    if not (root / FILE).exists():
        return False
    with Store(root) as there:
        return archive.complete(request, there)


def _say_plan(specs: Sequence[Spec], store: Path | None, how: _How, as_json: bool) -> None:
    """Print what would be run, on standard output; nothing is trained and nothing written."""
    from batchlab import laboratory as lab

    with _bench(store, how, look=True) as bench:
        costed = bench.plan(specs)
    if as_json:
        say_json(lab.plan_json(costed))
        return
    print(costed.plan.said(costed.seconds))
    shown = zip(costed.plan.pieces, costed.costs, strict=True)
    say_rows([{"job": p.label, "steps": p.steps, "seconds": cost} for p, cost in shown])


def _protocol(workload: str, matmul: str, device: str) -> Protocol:
    from batchlab.workloads import workload as find

    check_matmul(matmul, device)
    return find(workload).protocol.model_copy(update={"matmul": matmul})


def _train_spec(
    protocol: Protocol,
    option: str,
    phases: list[str],
    optimizer: Optimizer,
    seed: int,
    every: int,
    steps: int | None,
) -> TrainSpec:
    schedule = [Phase.parse(text, optimizer, name=option) for text in phases]
    check_seed(seed)
    spec = protocol.spec(schedule, seed, Cadence.doubling(every))
    _fits(option, spec.check, protocol)
    return spec if steps is None else spec.cut(steps, protocol.train_samples)


def _optimizer(name: str, momentum: float, weight_decay: float) -> Optimizer:
    one_of("--optimizer", name, OPTIMIZERS)
    settings = {"name": name, "momentum": momentum, "weight_decay": weight_decay}
    return Optimizer.model_validate(settings)


def _headlines(found: list[Any]) -> list[Any]:
    """The first of each id: the reading that the page shows first.

    Those of the article's list, or all where none is of it.
    """
    first: dict[str, Any] = {}
    for finding in found:
        first.setdefault(finding.id, finding)
    return [f for f in first.values() if f.number] or list(first.values())


def _fail(message: str, status: int) -> NoReturn:
    print(f"batchlab: {message}", file=sys.stderr)
    sys.exit(status)
