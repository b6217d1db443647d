"""The multilayer perceptron and its initialisations.

Shapes: I inputs of a layer (its fan-in), O outputs (its fan-out).
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import nn

from batchlab.spec import Initialisation, Model
from batchlab.workloads.seeding import forked

Initialiser = Callable[[torch.Tensor, torch.Tensor, torch.Generator], None]


def build(model: Model, inputs: int, outputs: int, generator: torch.Generator) -> nn.Sequential:
    """Linear layers with ReLU between them, at their initial point: float32, on the CPU.

    Every draw is `generator`'s, layer by layer from the input, so its seed alone fixes the
    weights; cast or move the result, and all devices and dtypes start from one point.
    """
    initialise = INITIALISATIONS[model.initialisation]
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise((inputs, *model.hidden, outputs)):
        if layers:
            layers.append(nn.ReLU())
        # It draws its default first, from the global generator. By way of "meta" it draws nothing,
        # but PyTorch then imports SymPy and its compiler: half a second of every process.
        with forked(torch.device("cpu")):
            linear = nn.Linear(fan_in, fan_out, device="cpu", dtype=torch.float32)
        initialise(linear.weight, linear.bias, generator)
        layers.append(linear)
    return nn.Sequential(*layers)


def glorot_uniform(w_OI: torch.Tensor, b_O: torch.Tensor, generator: torch.Generator) -> None:
    """Weights uniform within sqrt(6 / (I + O)), biases zero: Glorot & Bengio 2010, eq. 16."""
    nn.init.xavier_uniform_(w_OI, generator=generator)
    nn.init.zeros_(b_O)


def glorot_normal(w_OI: torch.Tensor, b_O: torch.Tensor, generator: torch.Generator) -> None:
    """Weights normal with variance 2 / (I + O), biases zero: Glorot & Bengio 2010, eq. 12."""
    nn.init.xavier_normal_(w_OI, generator=generator)
    nn.init.zeros_(b_O)


def he_uniform(w_OI: torch.Tensor, b_O: torch.Tensor, generator: torch.Generator) -> None:
    """Weights uniform within sqrt(6 / I), biases zero.

    He et al. 2015, eq. 10 asks for the variance 2 / I; uniform instead of normal.
    """
    nn.init.kaiming_uniform_(w_OI, nonlinearity="relu", generator=generator)
    nn.init.zeros_(b_O)


def lecun_normal(w_OI: torch.Tensor, b_O: torch.Tensor, generator: torch.Generator) -> None:
    """Weights normal with variance 1 / I, biases zero: LeCun et al. 1998, Efficient BackProp."""
    nn.init.normal_(w_OI, std=w_OI.shape[1] ** -0.5, generator=generator)
    nn.init.zeros_(b_O)


def torch_default(w_OI: torch.Tensor, b_O: torch.Tensor, generator: torch.Generator) -> None:
    """Weights and biases uniform within 1 / sqrt(I): what PyTorch's `nn.Linear` does unasked."""
    bound = w_OI.shape[1] ** -0.5
    nn.init.uniform_(w_OI, -bound, bound, generator=generator)
    nn.init.uniform_(b_O, -bound, bound, generator=generator)


INITIALISATIONS: dict[Initialisation, Initialiser] = {
    "glorot_uniform": glorot_uniform,
    "glorot_normal": glorot_normal,
    "he_uniform": he_uniform,
    "lecun_normal": lecun_normal,
    "torch": torch_default,
}
