"""The stages in order: machine, present setting, prediction, branches, answer."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from time import perf_counter

from batchlab.advice import timing
from batchlab.advice.answer import Advice, Cost, Tests
from batchlab.advice.branches import COST, Plan, branch, plan
from batchlab.advice.keep import Keep
from batchlab.advice.present import Present, Say, run_present
from batchlab.advice.rates import Rule
from batchlab.advice.recommend import Recommendation, joined, recommend
from batchlab.advice.tuning import Tuned, tune
from batchlab.analysis.branches import Comparison, compare
from batchlab.analysis.intervals import Interval
from batchlab.analysis.noise_scale import Window, curve, noise_scales
from batchlab.analysis.pooling import pooled
from batchlab.analysis.prediction import TOLERANCE
from batchlab.engine.draws import derived
from batchlab.engine.machine import Machine, machine
from batchlab.engine.settings import Settings
from batchlab.probes.preconditioner import ADAPTIVE
from batchlab.record import ALL, NoiseSeries
from batchlab.spec import UserError
from batchlab.workloads.budget import DEFAULT, Budget
from batchlab.workloads.failures import training
from batchlab.workloads.optimizers import adaptive
from batchlab.workloads.prepare import prepare
from batchlab.workloads.prepared import Prepared
from batchlab.workloads.target import load_target
from batchlab.workloads.user import UserWorkload

MACHINE_S, ROUNDS = 15.0, 30  # of the machine's timing, at the most
WINDOWS = 6  # of the noise scale along the run, at the most
IN_WINDOW = 8  # measured steps, at the least
SPAN, WIDEST = 8.0, 64.0  # the largest size branched at over the present one, least and most


def advise(
    workload: UserWorkload | Prepared | str,
    *,
    seed: int = 0,
    budget: str | int | Budget = DEFAULT,
    verify: bool = False,
    target: float | None = None,
    out: Path | None = None,
    device: str = "cpu",
    data_dir: Path | None = None,
    memory_cap: int | None = None,
    say: Say = lambda _: None,
) -> Advice:
    """Which batch size to use, and why; `verify` tests the prediction by branches.

    `workload`: a workload, or TARGET as the command line takes it (`device` and `data_dir` are for
    built-in ones). `budget`: how long the present setting is run (`20000` samples, `10e` epochs,
    `60s`); the whole costs up to eleven times that with `verify`, and mostly half as much.
    `target`: the metric's or the loss's value on the validation data, else the workload's own, else
    what the present run comes to. `out`: a directory for what is measured, as soon as it is.
    `memory_cap`: bytes that a step may take; on the CPU half of what is free. `say` gets a line now
    and then.

    The answer is the same for the same seed but for what rests on time, which is measured. Raises
    `UserError`, one line, for whatever is wrong with the input; `out` then has what was measured.
    """
    limit = Budget.parse(budget)
    keep = Keep(out)
    try:
        with training("training", "give a smaller batch_size"):
            ready = _ready(workload, seed, device, data_dir)
            keep.stage("workload", {"name": ready.name, "notes": ready.notes})
            advice = _Sitting(ready, seed, keep, say).advise(limit, verify, target, memory_cap)
    except BaseException as error:
        keep.failed(error)
        raise
    keep.finished(advice.json())
    return advice


def _ready(
    workload: UserWorkload | Prepared | str, seed: int, device: str, data_dir: Path | None
) -> Prepared:
    if isinstance(workload, Prepared):
        return workload
    if isinstance(workload, str):
        return load_target(workload, seed=seed, device=device, data_dir=data_dir)
    return prepare(workload)


@dataclass(frozen=True, slots=True)
class _Sitting:
    """One workload's: what every stage is given."""

    ready: Prepared
    seed: int
    keep: Keep
    say: Say
    costs: list[Cost] = field(default_factory=list)

    def advise(self, limit: Budget, verify: bool, target: float | None, cap: int | None) -> Advice:
        """All stages."""
        ready, size = self.ready, self.ready.batch_size
        measured, told = self._machine(cap)
        through = timing.throughput(measured, told)
        seconds = float(through.at(size).seconds.effect)
        steps = limit.steps(size, len(ready.train), seconds)
        self.say(f"present setting: {steps} steps of {size}, about {steps * seconds:.0f} s")
        present = self._present(steps, timing.micro_batch(measured, size), target, verify)
        tuned = self._tuned(present) if verify else Tuned(present, 1.0, 0, {})
        run = tuned.run
        series = _to_target(run)
        windows, noise = _noise(series[ALL], size)
        layers = noise_scales({k: v for k, v in series.items() if k != ALL})
        self.keep.stage("noise_scale", {"over_the_run": noise, "windows": windows})
        rule = Rule.of(ready, noise).tuned(tuned.multiplier, noise)
        answer = recommend(noise, size, run.steps, through, None, rule.at)
        self.keep.stage("predicted", answer)

        tests = None
        if verify:
            first = rule

            def judge(comparison: Comparison) -> tuple[Rule, Recommendation]:
                known = first.tuned(1.0, _known(joined(comparison, noise)[0], noise))
                return known, recommend(noise, size, run.steps, through, comparison, known.at)

            def decided(comparison: Comparison) -> bool:
                return judge(comparison)[1].choice is not None

            # A run that has come to its target is short; where its branches do not decide, there
            # may be as many as had it gone on for the whole budget.
            planned = _planned(run, COST * present.samples, answer, told)
            tests = self._tests(run, planned, COST * steps * size, rule, measured, decided)
            rule, answer = judge(tests.comparison)
        return Advice(
            ready.name,
            answer,
            rule,
            present,
            tuned,
            noise,
            tuple(windows),
            layers,
            measured,
            through,
            tests,
            (*ready.notes, *measured.notes, *_unknown_metric(ready)),
            tuple(self.costs),
        )

    @contextmanager
    def _costing(self, stage: str) -> Iterator[Callable[[int], None]]:
        """Seconds of the block as the stage's cost, with the samples that it is told of."""
        began, samples = perf_counter(), list[int]()
        yield samples.append
        self.costs.append(Cost(stage, perf_counter() - began, sum(samples)))

    def _machine(self, cap: int | None) -> tuple[Machine, list[int]]:
        """What was timed, and the batch sizes that can be told of."""
        ready, size = self.ready, self.ready.batch_size
        with self._costing("machine"):
            measured = machine(
                ready,
                sizes=_to_try(ready),
                budget_s=MACHINE_S,
                needed=size,
                cap_bytes=cap,
                seed=self.seed,
                rounds=ROUNDS,
            )
        self.keep.stage("machine", measured)
        told = timing.sizes(measured, len(ready.train))
        if size not in told:
            told = sorted({*told, size})  # by accumulation: memory has ended the list
        self.say(f"machine: {len(measured.sizes)} micro-batch sizes, {measured.stopped}")
        return measured, told

    def _present(
        self, steps: int, micro_batch: int | None, target: float | None, verify: bool
    ) -> Present:
        present = run_present(
            self.ready,
            Settings(self.ready.batch_size, micro_batch=micro_batch),
            steps,
            seed=derived(self.seed, "present"),
            target=self.ready.given.target if target is None else target,
            branched=verify,
            keep=lambda told: self.keep.stage("present", told),
            say=self.say,
        )
        self.costs.append(Cost("present setting", present.seconds, present.passed))
        self.keep.stage("present", present.json())
        return present

    def _tuned(self, present: Present) -> Tuned:
        with self._costing("learning rate") as samples:
            tuned = tune(
                self.ready,
                present,
                seed=derived(self.seed, "present"),
                keep=lambda told: self.keep.stage("rate", told),
                say=self.say,
            )
            samples(tuned.samples)
        return tuned

    def _tests(
        self,
        tuned: Present,
        planned: Plan,
        most: float,
        rule: Rule,
        measured: Machine,
        decided: Callable[[Comparison], bool],
    ) -> Tests:
        size = tuned.settings.batch_size
        listed = ", ".join(map(str, planned.sizes))
        self.say(f"branches: batch sizes {listed}, {planned.samples:,} samples each")
        with self._costing("branches") as samples:
            made = branch(
                self.ready,
                tuned,
                rule,
                planned,
                micro=lambda b: timing.micro_batch(measured, b),
                enough=lambda done: decided(compare(size, done.ratios())),
                most=most,
                seed=self.seed,
                keep=lambda told: self.keep.stage("branches", told),
                say=self.say,
            )
            samples(made.samples)
        comparison = compare(size, made.ratios())
        places = tuple(_place(size, made.ratios(place)) for place in range(len(made.steps)))
        return Tests(made, comparison, places)


def _to_try(ready: Prepared) -> list[int]:
    """Micro-batch sizes: powers of two up to half of the data, and the present size."""
    half = len(ready.train) // 2
    return sorted({2**k for k in range(half.bit_length())} | {ready.batch_size})


def _to_target(present: Present) -> dict[str, NoiseSeries]:
    """What was measured up to the target; raises `UserError` where that is too little."""
    count = sum(step <= present.steps.high for step in present.measured)
    if count < 2:
        raise UserError(
            f"noise scale: {count} of the {present.steps.high:.0f} steps to the target could be "
            f"measured, two are needed; give a --target that takes longer, or a smaller batch_size"
        )
    return {k: NoiseSeries(*(v[:count] for v in of)) for k, of in present.series.items()}


def _noise(series: NoiseSeries, size: int) -> tuple[list[Window], Interval]:
    """The noise scale in windows, and over all of them.

    Another one in samples takes B_simple's place by its own windows' intervals in `pooled`.
    """
    windows = curve(series, max(1, min(WINDOWS, len(series.trace_S) // IN_WINDOW)))
    return windows, pooled([w.estimate.scale for w in windows], size)


def _unknown_metric(ready: Prepared) -> list[str]:
    """What the user must know where the noise scale is not in the optimizer's own metric."""
    optimizer = ready.given.optimizer
    if not adaptive(optimizer) or isinstance(optimizer, ADAPTIVE):
        return []
    known = ", ".join(kind.__name__ for kind in ADAPTIVE)
    return [
        f"the noise scale is that of plain gradients, as no metric is known of "
        f"{type(optimizer).__name__} (of {known} it is): --verify tests what follows from it"
    ]


def _planned(tuned: Present, allowed: float, predicted: Recommendation, sizes: list[int]) -> Plan:
    """Where the best may be, by what was predicted, and not only next to the present size."""
    size, rows = tuned.settings.batch_size, predicted.prediction.rows
    possible = [row.batch_size for row in rows if row.seconds_over.low <= 1 + TOLERANCE]
    high = min(max(possible[-1], size * SPAN), size * WIDEST)
    return plan(tuned, allowed, sizes, possible[0], high)


def _place(size: int, ratios: dict[float, list[float]]) -> Comparison | None:
    try:
        return compare(size, ratios)
    except UserError:
        return None


def _known(critical: Interval, noise: Interval) -> Interval:
    """What the learning-rate rule is told: B_crit as tested, where that is decided."""
    return critical if critical.low > 0 and critical.high < inf else noise
