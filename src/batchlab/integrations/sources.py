"""Where a step's norms come from in a loop that is the user's: examples, micro-batches or ranks.

Each is found at work, never asked for its part: examples and micro-batches are recognised as the
backward passes go by. `take` gives a step's `Parts`, or None where this step can't tell (a batch of
one example, accumulation that an epoch's end cut to one micro-batch).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from batchlab.probes.chunks import ChunkNorms
from batchlab.probes.hooks import Hooked
from batchlab.probes.norms import Floats
from batchlab.probes.parts import Parts
from batchlab.probes.per_example import PerExampleNorms, unsupported
from batchlab.probes.preconditioner import NoStepYet, metric_roots
from batchlab.probes.ranks import RankNorms
from batchlab.spec import UserError
from batchlab.workloads.tree import leaves

Reduction = Literal["mean", "sum"]
Divided = bool | int
_UNSEEN = (
    "the batch's size can't be seen (in train() the model was not called on a tensor): call "
    "watch.micro_batch(examples) before each"
)


class Source(Protocol):
    """Norms of one step after another; `active` says whether the next is measured."""

    names: tuple[str, ...]
    told: str  # what a batch's parts are, and why not something finer
    active: bool

    def take(self, reduction: Reduction, divided: Divided) -> Parts | None:
        """The step's norms; the loss was divided by the number of micro-batches, or by `divided`.

        False is for a loss that was not divided.
        """

    def begin(self, examples: int) -> None:
        """A micro-batch begins, in a loop that knows; without it, it is seen by a model's call."""

    def remove(self) -> None:
        """Take the hooks off the model."""


class Examples:
    """Every example's own gradient: the most precise, where all layers allow."""

    told = "per-example norms"

    def __init__(self, model: nn.Module) -> None:
        self._norms = PerExampleNorms(model)
        self.names = self._norms.names

    @property
    def active(self) -> bool:
        """Whether the model has its hooks."""
        return self._norms.active

    @active.setter
    def active(self, wanted: bool) -> None:
        if wanted != self._norms.active:
            self._norms.active = wanted

    def take(self, reduction: Reduction, divided: Divided) -> Parts | None:
        """As `Source.take`; raises `UserError` where a layer can't be told."""
        norms = self._norms
        norms.whole_P = None
        if divided <= 1:  # one pass, then, is not divided
            told = norms.take_kept(reduction)
            if told is not None:
                return told
        sizes = norms.sizes
        if sum(sizes) == 1:
            norms.discard()
            return None
        return norms.take(reduction, 1 / _divisor(divided, len(sizes)))

    def hand_over(self) -> Tensor | Floats | None:
        """The norms of `.grad` by parameter that the last `take` found, once."""
        told, self._norms.whole_P = self._norms.whole_P, None
        return told

    def begin(self, examples: int) -> None:
        """Nothing to do: layers see their examples."""

    def remove(self) -> None:
        """Take the hooks off the model."""
        self._norms.remove()


class _Calls(Hooked):
    """Examples of each of a model's calls in training: evaluations, whether in eval() or without
    gradients, and what a backward pass computes again are none."""

    def __init__(self, model: nn.Module, called: Callable[[int], object]) -> None:
        super().__init__()
        self._model, self._called = model, called

    def _attach(self) -> list[RemovableHandle]:
        return [self._model.register_forward_pre_hook(self._before, with_kwargs=True)]

    def _before(
        self, module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> None:
        if module.training and torch.is_grad_enabled() and torch._C._current_graph_task_id() == -1:
            self._called(first_dimension((args, kwargs)))


class _OfCalls(ABC):
    """Parts whose sizes the model's calls tell, or the loop does. Abstract: `_begin` a part."""

    def __init__(self, model: nn.Module, norms: ChunkNorms | RankNorms) -> None:
        self.names = norms.names
        self._measured = norms
        self._told_by_loop = False
        self._calls = _Calls(model, self._called)
        self.active = True

    @property
    def active(self) -> bool:
        """Whether the next step is measured."""
        return self._measured.active

    @active.setter
    def active(self, wanted: bool) -> None:
        self._measured.active = self._calls.active = wanted

    def begin(self, examples: int) -> None:
        """A micro-batch begins; a loop that says so once says so always."""
        self._told_by_loop = True
        if self.active:
            self._begin(examples)

    def _called(self, examples: int) -> None:
        if not self._told_by_loop:
            self._begin(examples)

    @abstractmethod
    def _begin(self, examples: int) -> None:
        """A micro-batch of so many; 0 where that can't be seen."""


class MicroBatches(_OfCalls):
    """The micro-batches of gradient accumulation, for any model: free, and far less precise.

    A micro-batch ends where the model is called again after a backward pass, or at `take`. Its
    examples are the first dimension of the model's first tensor. With an optimizer, norms are in
    its metric (`probes/preconditioner.py`), as it stood before the step; `UserError` where none is
    known.
    """

    def __init__(self, model: nn.Module, why: str = "", metric_of: Optimizer | None = None) -> None:
        if metric_of is not None:
            _roots(model, metric_of)  # raises before there are hooks
        self._norms = ChunkNorms(model)
        self.told = f"micro-batches{why}"
        self._model, self._metric_of = model, metric_of
        self._examples: list[int] = []  # of the model's calls since the last backward pass
        self._problem = ""  # with a micro-batch of this step
        self._compared = False  # a first micro-batch's gradient with `.grad`
        self._ready = False  # whether some step was in two micro-batches
        super().__init__(model, self._norms)

    def take(self, reduction: Reduction, divided: Divided) -> Parts | None:
        """As `Source.take`; raises `UserError` where the first step is in one micro-batch, or a
        step's micro-batches can't be told apart."""
        if self._norms.reached:
            self._close()
        self._examples.clear()
        problem, self._problem = self._problem, ""
        if problem:
            self._norms.discard()
            raise UserError(problem)
        sizes = self._norms.sizes
        if self._metric_of is not None and self._norms.roots is None:
            self._norms.discard()
            return None  # the optimizer had made no step yet
        if len(sizes) < 2:
            self._norms.discard()
            if self._ready:
                return None
            self.remove()
            raise UserError(
                f"the noise scale is taken from {self.told}, and the step had one: accumulate "
                f"gradients over two micro-batches or more a step"
            )
        self._ready = True
        return self._norms.take(reduction, 1 / _divisor(divided, len(sizes)))

    def remove(self) -> None:
        """Take the hooks off the model."""
        self.active = False
        self._norms.remove()

    def _begin(self, examples: int) -> None:
        if self._norms.reached:
            self._close(first=not self._norms.sizes)
        elif self._metric_of is not None and not self._norms.sizes:
            self._norms.roots = _roots(self._model, self._metric_of)
        self._examples.append(examples)

    def _close(self, *, first: bool = False) -> None:
        """End a micro-batch; at the `first` of several, `.grad` has not yet been clipped."""
        calls, self._examples = self._examples, []
        try:
            if not all(calls) or not calls:
                raise UserError(_UNSEEN)
            if len(calls) > 1:
                raise UserError(
                    f"the model was called {len(calls)} times before a backward pass: "
                    f"micro-batches are recognised where it is called once"
                )
            if first and not self._compared:
                self._compared = self._norms.compare()
            self._norms.close(calls[0])
        except UserError as error:  # it would end the user's call of the model: `take` says so
            self._norms.discard()
            self._problem = str(error)


class Ranks(_OfCalls):
    """The ranks of data parallel training, each with as many examples as this one."""

    told = "data parallel ranks"

    def __init__(self, model: DistributedDataParallel) -> None:
        self._norms = RankNorms(model)
        self._examples: list[int] = []  # of each of the model's calls in this step
        super().__init__(model, self._norms)

    def take(self, reduction: Reduction, divided: Divided) -> Parts | None:
        """As `Source.take`, on every rank."""
        calls, self._examples = self._examples, []
        if not calls or not all(calls):
            raise UserError(_UNSEEN)
        scale = float(sum(calls)) if reduction == "sum" else float(len(calls))
        return self._norms.take(sum(calls), scale / _divisor(divided, len(calls)))

    def remove(self) -> None:
        """Stop looking; DDP has no way to take a communication hook off again."""
        self.active = False

    def _begin(self, examples: int) -> None:
        self._examples.append(examples)


def trained_alone(model: nn.Module) -> nn.Module:
    """The model itself where data parallel training has one rank, and so no parts."""
    if isinstance(model, DistributedDataParallel) and dist.get_world_size(model.process_group) == 1:
        inner: nn.Module = model.module
        return inner
    return model


def source(model: nn.Module, metric_of: Optimizer | None = None) -> Source:
    """The finest source that the model allows; raises `UserError` where there is none."""
    if isinstance(model, DistributedDataParallel):
        if metric_of is not None:
            raise UserError("data parallel ranks have no optimizer's metric: metric='plain'")
        return Ranks(model)
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        raise UserError("several ranks: watch the DistributedDataParallel model, not its module")
    if metric_of is not None:
        return MicroBatches(model, " in the optimizer's metric", metric_of)
    if any(map(_compiled, model.modules())):
        return MicroBatches(model, " (a compiled model shows hooks nothing)")
    problems = unsupported(model)
    if not problems:
        return Examples(model)
    if any(isinstance(m, _BatchNorm) for m in model.modules()):
        return MicroBatches(model, " (batch norm couples examples: the noise is of these sizes)")
    name, why = next(iter(problems.items()))
    more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
    return MicroBatches(model, f" ({name or 'the model'}: {why}{more})")


def _divisor(divided: Divided, micro_batches: int) -> int:
    if divided is True:
        return max(micro_batches, 1)
    return divided or 1


def first_dimension(batch: object) -> int:
    """Examples of a batch: of the first tensor in it; 0 where there is none."""
    sizes = (len(t) for t in leaves(batch) if isinstance(t, Tensor) and t.ndim)
    return next(filter(None, sizes), 0)


def _compiled(module: nn.Module) -> bool:
    """By `torch.compile(module)`, `module.compile()`, or a compiled `forward`."""
    if hasattr(module, "_orig_mod") or module._compiled_call_impl is not None:
        return True
    forward = module.forward  # `torch.compiler.disable` leaves the same mark, and one of its own
    marked = hasattr(forward, "_torchdynamo_orig_callable")
    return marked and not hasattr(forward, "_torchdynamo_disable")


def _roots(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor] | None:
    try:
        return metric_roots(model, optimizer)
    except NoStepYet:
        return None
