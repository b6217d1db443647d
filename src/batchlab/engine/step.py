"""Optimizer steps: of any model by autograd; of a perceptron by its gradient in closed form, which
plain SGD adds in place; at small batch sizes by a compiled loop (on a GPU: `resident.py`).

Shapes: N samples of a stretch of steps, B of a batch, S of a block of the compiled loop, I and O
inputs and outputs of a layer.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from batchlab.engine import mlp
from batchlab.engine.loop import BLOCK, Loop, block_size, can_compile, divide
from batchlab.engine.products import Arithmetic, add_rows, change, product
from batchlab.engine.threads import together
from batchlab.spec import Matmul, Optimizer, Phase, batch_slices

COMPILED = 24  # up to this batch size the compiled loop is faster, by measurement (decision 0006)


class Stepper(ABC):
    """Updates a model's parameters in place, batch by batch, and remembers each step's loss."""

    # Whether the same steps give the same numbers to the bit when they are asked for in pieces;
    # where not, a run asks for so many of them, from the beginning of every epoch.
    divisible = True
    stretch = 64
    recordable = True  # whether a graph of its steps may be worth its while (`replay.py`)

    def __init__(self) -> None:
        self._signs: list[torch.Tensor] = []  # one a step: finite just where its loss is

    @abstractmethod
    def steps(self, x_NI: torch.Tensor, y_N: torch.Tensor, size: int) -> None:
        """Take a step on the mean loss of each `size` samples, the last batch as short as it must
        be; no host-device sync."""

    def settle(self) -> None:  # noqa: B027, most have nothing to do
        """Bring the model's parameters up to date; until then they may lag behind."""

    @abstractmethod
    def state(self) -> dict[str, torch.Tensor]:
        """The optimizer's tensors, by name; empty where it has none."""

    @abstractmethod
    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Put back what `state` gave."""

    def signs(self) -> list[torch.Tensor]:
        """What remembers the losses of the steps since the last call, in their order: one number a
        step, finite just where its loss is."""
        signs, self._signs = self._signs, []
        return signs

    def first_diverged(self) -> int | None:
        """Which of the steps since the last call was the first with a loss that is not finite."""
        return first_diverged([self.signs()])[0]


def first_diverged(signs: Sequence[list[torch.Tensor]]) -> list[int | None]:
    """For each run the first of its steps whose sign is not finite; one host-device sync."""
    if not any(signs):
        return [None] * len(signs)
    bad = ~torch.stack([torch.cat(of) for of in signs]).isfinite()
    found = torch.stack([bad.any(1).int(), bad.int().argmax(1)]).tolist()
    return [at if any_ else None for any_, at in zip(*found, strict=True)]


class PlainSGD(Stepper):
    """Plain SGD, which keeps nothing from one step to the next."""

    def state(self) -> dict[str, torch.Tensor]:
        """Plain SGD has none."""
        return {}

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Nothing to put back."""
        if state:
            raise ValueError(f"plain SGD has no state, got {sorted(state)}")


class InPlaceSGD(PlainSGD):
    """Plain SGD on a perceptron: gradients go straight into the weights."""

    def __init__(self, layers: list[nn.Linear], rate: float, matmul: Matmul = "float32") -> None:
        super().__init__()
        self._rate = rate
        self._arithmetic = Arithmetic.of(matmul)
        self._weights, self._biases = mlp.stack_of_one(layers)

    def steps(self, x_NI: torch.Tensor, y_N: torch.Tensor, size: int) -> None:
        """Batch by batch; the first output gradient is finite just where the loss is."""
        top = len(self._weights) - 1
        for rows in batch_slices(len(x_NI), size):
            x_RBI, y_RB = x_NI[rows].unsqueeze(0), y_N[rows].unsqueeze(0)
            for index, d, h in mlp.backward(
                self._weights, self._biases, x_RBI, y_RB, self._arithmetic
            ):
                if index == top:
                    self._signs.append(d.sum().view(1))
                if self._arithmetic.product is product:
                    change(self._weights[index], d.mT, h, -self._rate)
                else:
                    rounded = self._arithmetic.product(d.mT, h)
                    self._weights[index].add_(rounded, alpha=-self._rate)
                add_rows(self._biases[index], d, -self._rate)


class CompiledSGD(PlainSGD):
    """Plain SGD on a perceptron by the compiled loop: blocks of many small steps.

    The first layer's weights change after a block, by one matrix product; where blocks begin is
    part of the rounding, so that a stretch of steps must not be cut elsewhere.
    """

    divisible = False
    stretch = 256

    def __init__(self, layers: list[nn.Linear], rate: float) -> None:
        super().__init__()
        self._rate = rate
        # The first layer's weights and all biases are the model's own, the others copies.
        self._first_OI, *between = (m.weight.detach() for m in layers)
        self._between = [*(w.mT for w in between[:-1]), between[-1]]
        self._first_bias, *self._biases = (m.bias.detach() for m in layers)
        self._widths = [m.out_features for m in layers]
        self._parts = divide(self._widths)
        self._loop: Loop | None = None  # its room is made once the batch size is known
        self._room = 0

    def steps(self, x_NI: torch.Tensor, y_N: torch.Tensor, size: int) -> None:
        """Block by block; the last layer's updates are finite just where the loss is."""
        if self._loop is None or size > self._room:
            self.settle()
            self._room, threads = max(BLOCK, size), torch.get_num_threads()
            self._loop = Loop(
                self._widths, self._room, x_NI.dtype, parts=self._parts, members=threads
            )
            self._weights = [self._loop.pack(w) for w in self._between]
            self._z_SO = x_NI.new_empty(self._room, self._widths[0])
            self._u = [x_NI.new_empty(self._room, width) for width in self._widths]
            self._h = [x_NI.new_empty(self._room, width) for width in self._widths[:-1]]
        signs = x_NI.new_empty(len(x_NI))
        work = partial(self._blocks, self._loop, x_NI, y_N, size, signs)
        together(self._loop.members, work, self._loop.release)
        whole = len(x_NI) - len(x_NI) % size
        self._signs.append(signs[:whole].view(-1, size).sum(1))
        if whole < len(x_NI):
            self._signs.append(signs[whole:].sum().view(1))

    def _blocks(
        self,
        loop: Loop,
        x_NI: torch.Tensor,
        y_N: torch.Tensor,
        size: int,
        signs_N: torch.Tensor,
        member: int,
    ) -> None:
        """A member's share: its units of the first layer, and its part in the loop."""
        mine = loop.slices(member)
        for rows in batch_slices(len(x_NI), block_size(size)):
            x_SI = x_NI[rows]
            x, samples = x_SI.unsqueeze(0), len(x_SI)
            z_SO, u = self._z_SO[:samples], [u[:samples] for u in self._u]
            for o in mine:
                z = product(x, self._first_OI[o].mT.unsqueeze(0))
                torch.add(z[0], self._first_bias[o], out=z_SO[:, o])
            loop.take(
                member,
                z_SO,
                torch.mm(x_SI, x_SI.mT).add_(1.0),  # the one is the bias
                y_N[rows],
                self._weights[:-1],
                self._biases[:-1],
                self._weights[-1],
                self._biases[-1],
                size,
                self._rate,
                [h[:samples] for h in self._h],
                u,
                ends=False,
            )
            for o in mine:
                change(self._first_OI[o].unsqueeze(0), u[0][:, o].mT.unsqueeze(0), x, 1.0)
                self._first_bias[o].add_(u[0][:, o].sum(0))
            if member == 0:
                torch.sum(u[-1], 1, out=signs_N[rows])

    def settle(self) -> None:
        """Copy the weights back."""
        if self._loop is not None:
            for flat, weight in zip(self._weights, self._between, strict=True):
                self._loop.unpack(flat, weight)


class ByOptimizer(Stepper):
    """By PyTorch's own optimizer, which has the state."""

    def __init__(self, model: nn.Module, phase: Phase) -> None:
        super().__init__()
        self._optimizer = torch_optimizer(model.parameters(), phase.optimizer, phase.learning_rate)

    def state(self) -> dict[str, torch.Tensor]:
        """Named `{parameter index}.{field}`."""
        state = self._optimizer.state_dict()["state"]
        return {
            f"{index}.{field}": value
            for index, fields in state.items()
            for field, value in fields.items()
            if value is not None
        }

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Put back what `state` gave."""
        fields: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in state.items():
            index, field = name.split(".")
            fields.setdefault(int(index), {})[field] = value
        whole = self._optimizer.state_dict()
        whole["state"] = fields
        self._optimizer.load_state_dict(whole)


class Autograd(ByOptimizer):
    """Any model, any optimizer, the loss being the mean negative log-likelihood."""

    def __init__(self, model: nn.Module, phase: Phase, matmul: Matmul = "float32") -> None:
        super().__init__(model, phase)
        self._model, self._bf16 = model, matmul == "bf16"

    def steps(self, x_NI: torch.Tensor, y_N: torch.Tensor, size: int) -> None:
        """Forward, backward, update."""
        for rows in batch_slices(len(x_NI), size):
            self._optimizer.zero_grad()  # first, whatever a step that was broken off has left
            with torch.autocast(x_NI.device.type, torch.bfloat16, enabled=self._bf16):
                loss = F.cross_entropy(self._model(x_NI[rows]), y_N[rows])
            loss.backward()
            self._optimizer.step()
            self._signs.append(loss.detach().view(1))


class ClosedForm(ByOptimizer):
    """Any optimizer on a perceptron, whose gradients are written where the optimizer reads them."""

    def __init__(
        self, model: nn.Module, layers: list[nn.Linear], phase: Phase, matmul: Matmul = "float32"
    ) -> None:
        super().__init__(model, phase)
        self._arithmetic = Arithmetic.of(matmul)
        self._layers = layers
        self._weights, self._biases = mlp.stack_of_one(layers)

    def steps(self, x_NI: torch.Tensor, y_N: torch.Tensor, size: int) -> None:
        """Batch by batch; the first output gradient is finite just where the loss is."""
        gradients = [(gradient_of(m.weight)[None], gradient_of(m.bias)[None]) for m in self._layers]
        for rows in batch_slices(len(x_NI), size):
            x_RBI, y_RB = x_NI[rows].unsqueeze(0), y_N[rows].unsqueeze(0)
            for index, d, h in mlp.backward(
                self._weights, self._biases, x_RBI, y_RB, self._arithmetic
            ):
                if index == len(self._layers) - 1:
                    self._signs.append(d.sum().view(1))
                weight, bias = gradients[index]
                if self._arithmetic.product is product:
                    torch.bmm(d.mT, h, out=weight)
                else:
                    weight.copy_(self._arithmetic.product(d.mT, h))
                torch.sum(d, 1, dtype=bias.dtype, out=bias)
            self._optimizer.step()


def gradient_of(parameter: torch.Tensor) -> torch.Tensor:
    """The parameter's `grad`, made where there is none."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def torch_optimizer(
    parameters: Iterable[nn.Parameter], chosen: Optimizer, rate: float
) -> torch.optim.Optimizer:
    """PyTorch's own optimizer with these settings, fused: one pass over its tensors.

    On CUDA its steps can be captured, which changes nothing in them.
    """
    parameters = list(parameters)
    if chosen.name == "sgd":
        return torch.optim.SGD(
            parameters,
            lr=rate,
            momentum=chosen.momentum,
            weight_decay=chosen.weight_decay,
            fused=True,
        )
    adam = torch.optim.Adam if chosen.name == "adam" else torch.optim.AdamW
    return adam(
        parameters,
        lr=rate,
        betas=(chosen.beta1, chosen.beta2),
        weight_decay=chosen.weight_decay,
        fused=True,
        capturable=parameters[0].is_cuda,
    )


def stepper(model: nn.Module, phase: Phase, matmul: Matmul = "float32") -> Stepper:
    """The fastest stepper that fits the model, the phase's optimizer and its batch size.

    The compiled loop and the resident kernel take no part in `matmul`: what they wait for is
    memory, and they multiply in full.
    """
    # Variants of what is here, so that they can't be imported before.
    from batchlab.engine.pointwise import PointwiseOptimizer, PointwiseSGD, suits
    from batchlab.engine.resident import RESIDENT, ResidentSGD, division

    layers = mlp.linear_layers(model)
    if layers is None:
        return Autograd(model, phase, matmul)
    pointwise = matmul != "bf16" and suits(layers)
    if not phase.optimizer.plain:
        if pointwise:
            return PointwiseOptimizer(model, layers, phase, matmul)
        if layers[0].weight.is_cuda:  # autograd's graphs replay there as fast as any
            return Autograd(model, phase, matmul)
        return ClosedForm(model, layers, phase, matmul)
    if phase.batch_size <= COMPILED and can_compile(len(layers), layers[0].weight.device.type):
        return CompiledSGD(layers, phase.learning_rate)
    if phase.batch_size <= RESIDENT and (parts := division(layers)) is not None:
        return ResidentSGD(layers, phase.learning_rate, parts)
    if pointwise:
        return PointwiseSGD(layers, phase.learning_rate, matmul)
    return InPlaceSGD(layers, phase.learning_rate, matmul)
