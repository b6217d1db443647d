"""Replayed steps are the steps themselves, to the bit: by the tape here, by graphs on a GPU."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from batchlab.engine import replay
from batchlab.engine.data import load
from batchlab.engine.draws import generator
from batchlab.engine.lanes import Lanes
from batchlab.engine.mlp import linear_layers
from batchlab.engine.recorder import Again, Graphs, Recorder, Recorders, again, never, on_cuda
from batchlab.engine.replay import Replayed
from batchlab.engine.replicas import Each, replicas
from batchlab.engine.state import RunState
from batchlab.engine.step import Autograd, CompiledSGD, InPlaceSGD, Stepper
from batchlab.engine.train import train, train_together
from batchlab.spec import Cadence, Matmul, Model, Optimizer, Phase, TrainSpec
from batchlab.workloads import workload
from batchlab.workloads.base import Data
from batchlab.workloads.mlp import build
from tests import toy
from tests.engine.tape import Tape

PLAIN, HEAVY, DECAYED = Optimizer(), Optimizer(momentum=0.9), Optimizer(weight_decay=0.01)
ADAM, DECOUPLED = Optimizer(name="adam"), Optimizer(name="adamw", weight_decay=0.1)


@pytest.fixture(autouse=True)
def _recordable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the compiled loop nor the resident kernel, which are not recorded."""
    monkeypatch.setattr("batchlab.engine.step.can_compile", lambda *_: False)
    monkeypatch.setattr("batchlab.engine.resident.division", lambda _: None)


class Recording:
    """The device's recorders, and the tapes that were made."""

    def __init__(self) -> None:
        self.tapes: list[Tape] = []

    def __call__(self, device: torch.device) -> Recorder:
        if device.type == "cuda":
            return Graphs(device)
        self.tapes.append(Tape())
        return self.tapes[-1]

    @property
    def replays(self) -> int:
        return sum(tape.replays for tape in self.tapes)


def data(device: torch.device, dtype: torch.dtype = torch.float32) -> Data:
    return toy.data(dtype).to(device, dtype)


def same(one: RunState, other: RunState) -> bool:
    return (
        (one.status, one.position, one.records) == (other.status, other.position, other.records)
        and one.tensors.keys() == other.tensors.keys()
        and all(torch.equal(v, other.tensors[k]) for k, v in one.tensors.items())
    )


def schedule(optimizer: Optimizer) -> tuple[Phase, ...]:
    """Batches of one and of what leaves a short one; momentum that outlives a phase, or does not;
    a phase too short for a graph."""
    return (
        toy.phase(1, epochs=2, optimizer=optimizer),
        toy.phase(3, 0.02, epochs=3, optimizer=optimizer),
        toy.phase(7, steps=5, optimizer=optimizer),
        toy.phase(6, steps=29, optimizer=HEAVY),
    )


CASES: dict[str, TrainSpec] = {
    **{
        f"{o.name} {o.momentum} {o.weight_decay}": toy.spec(
            *schedule(o), cadence=Cadence(every=2, steps=(1, 3, 37, 60, 130))
        )
        for o in (PLAIN, HEAVY, DECAYED, ADAM, DECOUPLED)
    },
    "float64": toy.spec(toy.phase(2), dtype="float64"),
    "bf16": toy.spec(toy.phase(2), toy.phase(2, optimizer=ADAM), matmul="bf16"),
}


@pytest.mark.parametrize("spec", CASES.values(), ids=CASES)
def test_a_training_as_without_recording(spec: TrainSpec, device: torch.device) -> None:
    there, recording = data(device, getattr(torch, spec.dtype)), Recording()
    mine = train(spec, there, recorders=recording)
    assert same(mine, train(spec, there, recorders=again))
    plain = train(spec, there, recorders=never)
    for name, value in plain.tensors.items():  # batches lie elsewhere: not to the bit
        torch.testing.assert_close(mine.tensors[name], value, rtol=1e-4, atol=1e-5)
    if device.type == "cpu":
        assert recording.replays > 5


def digits(size: int, optimizer: Optimizer, hidden: tuple[int, ...]) -> TrainSpec:
    phase = Phase(batch_size=size, learning_rate=0.01, epochs=2, optimizer=optimizer)
    made = workload("digits").protocol.spec([phase], 0, Cadence(every=2))
    model = made.model.model_copy(update={"hidden": hidden})
    return made.model_copy(update={"model": model})


@pytest.mark.parametrize("optimizer", [PLAIN, ADAM], ids=lambda o: o.name)
def test_digits_as_without_any_of_this(optimizer: Optimizer, device: torch.device) -> None:
    """Rows of 256 bytes lie alike wherever a batch begins, so that nothing differs at all."""
    there, recording = load("digits", None, str(device), "float32"), Recording()
    spec = digits(32, optimizer, (37, 21))  # no stacks
    assert same(train(spec, there, recorders=recording), train(spec, there, recorders=never))
    if device.type == "cpu":
        assert recording.replays > 5


class Stop(Exception):
    """The tick's way to interrupt."""


@pytest.mark.parametrize("optimizer", [PLAIN, HEAVY, ADAM], ids=str)
@pytest.mark.parametrize("after", [1, 3])
def test_interrupted_is_uninterrupted(
    optimizer: Optimizer, after: int, device: torch.device
) -> None:
    """A process that goes on from a checkpoint warms up and records at other steps."""
    spec, there, recording = toy.spec(*schedule(optimizer)), data(device), Recording()
    kept: list[RunState] = []
    state: RunState | None = None
    while state is None or state.status == "running":
        left = after

        def tick(_: int) -> None:
            nonlocal left
            left -= 1
            if not left:
                raise Stop

        try:
            state = train(
                spec, there, start=state, tick=tick, save=kept.append, recorders=recording
            )
        except Stop:
            state = RunState.from_parts(kept[-1].tensors, kept[-1].meta())
    assert len(kept) > 2
    assert same(state, train(spec, there, recorders=again))


def test_runs_side_by_side(device: torch.device) -> None:
    """Each has graphs of its own; one that diverges leaves the other alone."""
    specs = [toy.spec(toy.phase(1, rate), seed=k) for k, rate in enumerate((0.05, 1e6))]
    together = train_together(specs, data(device), recorders=Recording())
    alone = [train(spec, data(device), recorders=again) for spec in specs]
    assert [end.status for end in together] == ["finished", "diverged"]
    assert same(together[0], alone[0])
    assert (together[1].position, together[1].records) == (alone[1].position, alone[1].records)


def model(device: torch.device) -> nn.Sequential:
    made = build(Model(hidden=(16, 8)), toy.INPUTS, toy.CLASSES, generator(0, "init"))
    return made.to(device)


def autograd(device: torch.device, optimizer: Optimizer) -> tuple[nn.Module, Autograd]:
    made = model(device)
    return made, Autograd(made, toy.phase(1, optimizer=optimizer))


def recorder(device: torch.device) -> Recorder:
    return Graphs(device) if device.type == "cuda" else Tape()


def take(one: Stepper, there: Data, size: int = 1) -> None:
    """A pass over the data where runs are trained, which on a GPU is a stream of their own."""
    Lanes(there.train_x.device, 1).each([lambda: one.steps(there.train_x, there.train_y, size)])


def equal(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_a_state_is_loaded_into_what_was_recorded(device: torch.device) -> None:
    """And where only the optimizer hears of it, as it must not, the replay goes on without it."""
    there, ends = data(device), []
    for way in ("aside", "replayed", "past the recording"):
        made, one = autograd(device, ADAM)
        twin = Replayed(one, Again() if way == "aside" else recorder(device))
        take(twin, there)
        state = {k: v.clone() for k, v in twin.state().items()}
        take(twin, there)
        (one if way == "past the recording" else twin).load(state)
        take(twin, there)
        ends.append(made)
    assert equal(ends[0], ends[1])
    assert not equal(ends[0], ends[2])


def test_the_optimizers_first_step_must_not_be_recorded(
    monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    """It makes the optimizer's state, which every replay would make again."""
    there, ends = data(device), []
    for recorded_from in (None, replay.WARM_UP, 0):
        monkeypatch.setattr(replay, "WARM_UP", recorded_from or 0)
        made, one = autograd(device, HEAVY)
        twin = Replayed(one, Again() if recorded_from is None else recorder(device))
        for _ in range(3):
            take(twin, there)
        ends.append(made)
    assert equal(ends[0], ends[1])
    assert not equal(ends[0], ends[2])


def test_sizes_may_change(device: torch.device) -> None:
    there, ends = data(device), []
    for kind in (Again(), recorder(device)):
        made = model(device)
        one = Replayed(InPlaceSGD(linear_layers(made) or [], 0.05), kind)
        for size in (1, 2, 1, 50, 60, 3):
            for _ in range(2):
                take(one, there, size)
        one.settle()
        ends.append(made)
    assert equal(*ends)


@pytest.mark.parametrize("step", [0, 15, 16, 31, 40, 50])
def test_the_first_step_that_is_not_finite(step: int, device: torch.device) -> None:
    """Among those before the recording, in groups and on their own."""
    there = data(device)
    x, y = (
        t.repeat(2, 1)[:51] if t.ndim > 1 else t.repeat(2)[:51]
        for t in (there.train_x, there.train_y)
    )
    x[step] = torch.nan
    one = Replayed(InPlaceSGD(linear_layers(model(device)) or [], 0.05), recorder(device))
    assert one.first_diverged() is None
    take(one, replace(there, train_x=x, train_y=y))
    assert one.first_diverged() == step
    assert one.first_diverged() is None


class Asking(Stepper):
    """Asks for a number in every step, which a recording can't answer."""

    def __init__(self, one: Stepper) -> None:
        super().__init__()
        self._one = one

    def steps(self, x_NI: torch.Tensor, y_N: torch.Tensor, size: int) -> None:
        self._one.steps(x_NI, y_N, size)
        self._signs += self._one.signs()
        float(self._signs[-1])

    def state(self) -> dict[str, torch.Tensor]:
        return self._one.state()

    def load(self, state: dict[str, torch.Tensor]) -> None:
        self._one.load(state)


@pytest.mark.parametrize("optimizer", [HEAVY, ADAM], ids=lambda o: o.name)
def test_what_can_not_be_recorded_is_done_step_by_step(
    optimizer: Optimizer, device: torch.device
) -> None:
    there, ends = data(device), []
    for kind in (Again(), recorder(device)):
        made, one = autograd(device, optimizer)
        twin = Replayed(Asking(one), kind)
        if isinstance(kind, Again):
            take(twin, there)
        else:
            with pytest.warns(RuntimeWarning, match="steps are not replayed: "):
                take(twin, there)
        take(twin, there)
        assert torch.cat(twin.signs()).isfinite().sum() == 2 * toy.SAMPLES
        ends.append(made)
    assert equal(*ends)
    if device.type == "cuda":  # the current stream is the one it was
        assert torch.cuda.current_stream() == torch.cuda.default_stream()


def kinds(phase: Phase, recorders: Recorders, matmul: Matmul = "float32") -> type[Stepper]:
    made = replicas([model(torch.device("cpu"))], [phase], matmul, recorders)
    assert isinstance(made, Each)
    return type(made._steppers[0])


def test_steps_are_replayed_where_they_can_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert kinds(toy.phase(7), Recording()) is Replayed
    assert kinds(toy.phase(7, optimizer=ADAM), Recording(), "bf16") is Replayed
    assert kinds(toy.phase(7), on_cuda) is InPlaceSGD  # on a CPU
    assert kinds(toy.phase(7), never) is InPlaceSGD
    monkeypatch.undo()
    assert kinds(toy.phase(7), Recording()) is CompiledSGD
