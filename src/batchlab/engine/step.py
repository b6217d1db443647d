"""One optimizer step, in two forms: any model by autograd, the plain-SGD perceptron in place."""

from abc import ABC, abstractmethod

import torch
from torch import nn
from torch.nn import functional as F

from batchlab.engine import mlp
from batchlab.spec import Phase


class Stepper(ABC):
    """Updates a model's parameters in place, batch by batch, and remembers each step's loss."""

    def __init__(self) -> None:
        self._signs: list[torch.Tensor] = []

    @abstractmethod
    def step(self, x_BI: torch.Tensor, y_B: torch.Tensor) -> None:
        """Take one step on the mean loss of the batch; no host-device sync."""

    @abstractmethod
    def state(self) -> dict[str, torch.Tensor]:
        """The optimizer's tensors, by name; empty where it has none."""

    @abstractmethod
    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Put back what `state` gave."""

    def first_diverged(self) -> int | None:
        """Which of the steps since the last call was the first with a loss that is not finite."""
        if not self._signs:
            return None
        bad = ~torch.stack(self._signs).isfinite()
        self._signs.clear()
        return int(bad.nonzero()[0]) if bool(bad.any()) else None


class InPlaceSGD(Stepper):
    """Plain SGD on a perceptron: gradients go straight into the weights."""

    def __init__(self, layers: list[nn.Linear], rate: float) -> None:
        super().__init__()
        self._rate = rate
        # Stacks of one that share the parameters' memory: the model sees every update.
        self._weights = [m.weight.detach().unsqueeze(0) for m in layers]
        self._biases = [m.bias.detach().unsqueeze(0) for m in layers]

    def step(self, x_BI: torch.Tensor, y_B: torch.Tensor) -> None:
        """One step; the first output gradient is finite just where the loss is."""
        x_RBI, y_RB = x_BI.unsqueeze(0), y_B.unsqueeze(0)
        for index, d, h in mlp.backward(self._weights, self._biases, x_RBI, y_RB):
            if index == len(self._weights) - 1:
                self._signs.append(d.sum())
            self._weights[index].baddbmm_(d.mT, h, alpha=-self._rate)
            self._biases[index].sub_(d.sum(1), alpha=self._rate)

    def state(self) -> dict[str, torch.Tensor]:
        """Plain SGD has none."""
        return {}

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Nothing to put back."""
        if state:
            raise ValueError(f"plain SGD has no state, got {sorted(state)}")


class Autograd(Stepper):
    """Any model, any optimizer, the loss being the mean negative log-likelihood."""

    def __init__(self, model: nn.Module, phase: Phase) -> None:
        super().__init__()
        self._model = model
        self._optimizer = torch_optimizer(model, phase)

    def step(self, x_BI: torch.Tensor, y_B: torch.Tensor) -> None:
        """Forward, backward, update."""
        loss = F.cross_entropy(self._model(x_BI), y_B)
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._signs.append(loss.detach())

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


def torch_optimizer(model: nn.Module, phase: Phase) -> torch.optim.Optimizer:
    """PyTorch's own optimizer with the phase's settings; Adam fused, which halves its time."""
    chosen = phase.optimizer
    if chosen.name == "sgd":
        return torch.optim.SGD(
            model.parameters(),
            lr=phase.learning_rate,
            momentum=chosen.momentum,
            weight_decay=chosen.weight_decay,
        )
    adam = torch.optim.Adam if chosen.name == "adam" else torch.optim.AdamW
    return adam(
        model.parameters(),
        lr=phase.learning_rate,
        betas=(chosen.beta1, chosen.beta2),
        weight_decay=chosen.weight_decay,
        fused=True,
    )


def stepper(model: nn.Module, phase: Phase) -> Stepper:
    """The fastest stepper that fits the model and the phase's optimizer."""
    layers = mlp.linear_layers(model)
    if layers is not None and phase.optimizer.plain:
        return InPlaceSGD(layers, phase.learning_rate)
    return Autograd(model, phase)
