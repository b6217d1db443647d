"""Runs that train in lockstep: replicas of one model at one batch size, a step of all at a time.

A step of a small model is many small operations, and starting one costs as much as its arithmetic;
a stack of replicas starts each once for all of them. What a replica does depends on nothing but
itself, to the bit: every operation treats the members of a stack one by one and in the same way
wherever they stand in it, one replica alone is a stack of one, and the arithmetic is unthreaded.

Shapes: R replicas, N samples of a stretch of steps, B of a batch, I inputs and O outputs of a
layer.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from itertools import groupby, pairwise
from typing import NamedTuple

import torch
from torch import nn

from batchlab.engine import mlp
from batchlab.engine.lanes import Lanes
from batchlab.engine.loop import can_compile
from batchlab.engine.products import STACKED
from batchlab.engine.recorder import Recorders, on_cuda
from batchlab.engine.replay import replayed
from batchlab.engine.step import COMPILED, Stepper, first_diverged, stepper, torch_optimizer
from batchlab.spec import Matmul, Phase, batch_slices

# Up to this batch size a stack is faster than one run after another, by measurement
# (decision 0007); from there on a product alone fills a core.
LARGEST = 64
FEW = 2**18  # weights
VECTOR = 16  # units: of layers of whole vectors, a replica's rows are aligned like any other's
_ALIGNED = 64  # bytes: a tensor's place in a vector register must not depend on its replica

State = dict[str, torch.Tensor]  # an optimizer's tensors, named `{parameter index}.{field}`


class Replicas(ABC):
    """Steps of R models at once; what a `Stepper` is for one."""

    divisible: bool
    stretch: int

    @abstractmethod
    def steps(self, x_RNI: torch.Tensor, y_RN: torch.Tensor, size: int) -> None:
        """Take a step of every replica on the mean loss of each `size` of its own samples."""

    @abstractmethod
    def settle(self) -> None:
        """Bring the models' parameters up to date."""

    @abstractmethod
    def states(self) -> list[State]:
        """Each replica's optimizer state."""

    @abstractmethod
    def load(self, states: Sequence[State]) -> None:
        """Put back what `states` gave."""

    @abstractmethod
    def first_diverged(self) -> list[int | None]:
        """For each replica, the first step since the last call with a loss that is not finite."""


class Each(Replicas):
    """Each by its own stepper, in its own lane."""

    def __init__(self, steppers: Sequence[Stepper], lanes: Lanes) -> None:
        self._steppers, self._lanes = steppers, lanes
        self.divisible, self.stretch = steppers[0].divisible, steppers[0].stretch

    def steps(self, x_RNI: torch.Tensor, y_RN: torch.Tensor, size: int) -> None:
        """All steps of the first, then of the next, as far as it is the host who calls for them."""
        runs = zip(self._steppers, x_RNI, y_RN, strict=True)
        self._lanes.each([partial(one.steps, x_NI, y_N, size) for one, x_NI, y_N in runs])

    def settle(self) -> None:
        """Each its own."""
        for one in self._steppers:
            one.settle()

    def states(self) -> list[State]:
        """Each its own."""
        return [one.state() for one in self._steppers]

    def load(self, states: Sequence[State]) -> None:
        """Each its own."""
        for one, state in zip(self._steppers, states, strict=True):
            one.load(state)

    def first_diverged(self) -> list[int | None]:
        """Each its own; the host waits for the device once for all of them."""
        return first_diverged([one.signs() for one in self._steppers])


class _Optimizer(NamedTuple):
    """PyTorch's optimizer over the neighbouring replicas that share its settings."""

    rows: slice
    parameter: nn.Parameter  # (R, all parameters of a replica)
    torch: torch.optim.Optimizer


class Stacked(Replicas):
    """Perceptrons of one shape by products of stacks, their parameters side by side in memory."""

    divisible = True
    stretch = 64

    def __init__(self, models: Sequence[list[nn.Linear]], phases: Sequence[Phase]) -> None:
        """From each model's layers, which are views of the stack from here on, and its phase."""
        parameters = [[p for m in layers for p in (m.weight, m.bias)] for layers in models]
        self._places = _Places([p.shape for p in parameters[0]], parameters[0][0].element_size())
        first = parameters[0][0].detach()
        self._flat_RP = first.new_zeros((len(models), self._places.size))
        tensors = self._places.views(self._flat_RP)
        for replica, own in enumerate(parameters):
            for stacked, parameter in zip(tensors, own, strict=True):
                stacked[replica].copy_(parameter.detach())
                parameter.data = stacked[replica]
        self._weights, self._biases = tensors[0::2], tensors[1::2]
        self._rates_R11 = first.new_tensor([phase.learning_rate for phase in phases])[:, None, None]
        self._plain = all(phase.optimizer.plain for phase in phases)
        self._optimizers: list[_Optimizer] = []
        if not self._plain:
            gradient_RP = torch.zeros_like(self._flat_RP)
            gradients = self._places.views(gradient_RP)
            self._weight_gradients, self._bias_gradients = gradients[0::2], gradients[1::2]
            self._optimizers = self._make_optimizers(phases, gradient_RP)
        self._signs: list[torch.Tensor] = []  # (R) a step: finite just where the loss is

    def _make_optimizers(
        self, phases: Sequence[Phase], gradient_RP: torch.Tensor
    ) -> list[_Optimizer]:
        made, begin = [], 0
        for (optimizer, rate), like in groupby(phases, lambda p: (p.optimizer, p.learning_rate)):
            rows = slice(begin, begin := begin + len(list(like)))
            parameter = nn.Parameter(self._flat_RP[rows])
            parameter.grad = gradient_RP[rows]
            made.append(_Optimizer(rows, parameter, torch_optimizer([parameter], optimizer, rate)))
        return made

    @torch.no_grad()
    def steps(self, x_RNI: torch.Tensor, y_RN: torch.Tensor, size: int) -> None:
        """Batch by batch; the first output gradient is finite just where the loss is."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            for rows in batch_slices(x_RNI.shape[1], size):
                self._step(x_RNI[:, rows], y_RN[:, rows])
        finally:
            torch.set_num_threads(threads)

    def _step(self, x_RBI: torch.Tensor, y_RB: torch.Tensor) -> None:
        samples, top = y_RB.shape[1], len(self._weights) - 1
        scale = self._rates_R11 * (-1 / samples) if self._plain else 1 / samples
        passed = mlp.backward(self._weights, self._biases, x_RBI, y_RB, STACKED, scale)
        for index, d, h in passed:
            if index == top:
                self._signs.append(d.sum((1, 2)))
            if self._plain:  # d is the update already
                self._weights[index].baddbmm_(d.mT, h)
                self._biases[index].add_(d.sum(1))
            else:
                torch.bmm(d.mT, h, out=self._weight_gradients[index])
                torch.sum(d, 1, out=self._bias_gradients[index])
        for one in self._optimizers:
            one.torch.step()

    def settle(self) -> None:
        """The models' parameters are the stack."""

    def states(self) -> list[State]:
        """Views of the optimizers' fields; a number of steps is the same for all parameters."""
        states: list[State] = [{} for _ in self._flat_RP]
        for one in self._optimizers:
            for field, value in one.torch.state[one.parameter].items():
                if value is None:
                    continue
                if value.ndim:
                    parts = self._places.views(value)
                else:
                    parts = [value.expand(len(one.parameter))] * len(self._places.shapes)
                for index, part in enumerate(parts):
                    for state, mine in zip(states[one.rows], part, strict=True):
                        state[f"{index}.{field}"] = mine
        return states

    def load(self, states: Sequence[State]) -> None:
        """Copies them into the stack; nothing where an optimizer has not stepped yet."""
        for one in self._optimizers:
            mine = states[one.rows]
            fields = {name.partition(".")[2] for name in mine[0]}
            for field in fields:
                if not mine[0][f"0.{field}"].ndim:
                    one.torch.state[one.parameter][field] = mine[0][f"0.{field}"].clone()
                    continue
                whole = torch.zeros_like(one.parameter)
                for index, part in enumerate(self._places.views(whole)):
                    for stacked, state in zip(part, mine, strict=True):
                        stacked.copy_(state[f"{index}.{field}"])
                one.torch.state[one.parameter][field] = whole

    def first_diverged(self) -> list[int | None]:
        """By the steps' signs, all replicas' at once."""
        if not self._signs:
            return [None] * len(self._flat_RP)
        signs_RS = torch.stack(self._signs, 1)
        self._signs.clear()
        return first_diverged([[signs_S] for signs_S in signs_RS])


class _Places:
    """Where each parameter of a replica lies in its row."""

    def __init__(self, shapes: Sequence[torch.Size], element: int) -> None:
        unit, self.size = _ALIGNED // element, 0
        self.shapes, self._begins = shapes, []
        for shape in shapes:
            self._begins.append(self.size)
            self.size += -(-shape.numel() // unit) * unit

    def views(self, flat_RP: torch.Tensor) -> list[torch.Tensor]:
        """Every parameter of all rows (R, its own shape), sharing their memory."""
        return [
            flat_RP[:, begin : begin + shape.numel()].unflatten(1, shape)
            for begin, shape in zip(self._begins, self.shapes, strict=True)
        ]


def can_stack(widths: Sequence[int], phase: Phase, matmul: Matmul, device: str) -> bool:
    """Whether a perceptron with these numbers of units is trained by stacks in this phase.

    On a CPU, where they are faster than one run after another, and where no sum depends on how a
    replica's numbers are aligned in memory.
    """
    small = sum(i * o for i, o in pairwise(widths)) <= FEW and phase.batch_size <= LARGEST
    compiled = (
        phase.optimizer.plain
        and phase.batch_size <= COMPILED
        and can_compile(len(widths) - 1, device)
    )
    even = all(width % VECTOR == 0 for width in widths[:-1])
    return small and even and not compiled and matmul == "float32" and device == "cpu"


def replicas(
    models: Sequence[nn.Module],
    phases: Sequence[Phase],
    matmul: Matmul,
    recorders: Recorders = on_cuda,
) -> Replicas:
    """The fastest way to take the phase's steps; `phases` differ in their numbers only.

    It depends on a model and its phase alone: not on how many of them there are. `recorders` says
    how steps are recorded and replayed, if they are.
    """
    device = next(models[0].parameters()).device
    layers = [mlp.linear_layers(model) for model in models]
    stackable = [own for own in layers if own is not None]
    if len(stackable) == len(models):
        first = stackable[0]
        widths = [first[0].in_features, *(layer.out_features for layer in first)]
        if can_stack(widths, phases[0], matmul, device.type):
            return Stacked(stackable, phases)
    steppers = [
        replayed(stepper(model, phase, matmul), recorders, device)
        for model, phase in zip(models, phases, strict=True)
    ]
    # What fills a GPU by itself gains nothing beside others.
    return Each(steppers, Lanes(device, len(models) if steppers[0].recordable else 0))
