"""Per-example gradient norms in the ordinary backward pass, by hooks on modules.

Inputs and output gradients of every layer pass by anyway; `squares` has the norms from them. One
pass, no copies, no gradient of an example but where that is the cheaper way. An example is a row of
the first dimension of every layer's input: sequences are (batch, time, ...).

What has no per-example gradient, or none that hooks can see, is refused by name: batch norm, whose
examples share statistics; a parameter that several modules share; a module that one forward pass
calls twice, or that goes backward twice after one; types not in `layers.LAYERS`. Chunks
(`probes/chunks.py`) work for all of these but the first, where they are of the coupled loss.

Examples are seen at the layers, the whole in `.grad`. In the first step that is taken the two are
compared, layer by layer: `.grad` has more where a parameter is used outside its layer (a table tied
by `F.linear`) or the loss has a penalty on it, and less where a pass went backward for something
else (an adversarial example). Not seen: what comes in later steps only, what changes a layer's norm
by less than `TOLERANCE`, and examples that went forward twice on purpose, which count twice.

Shapes: B examples, P parameters, M micro-batches.
"""

from collections.abc import Iterable
from functools import partial
from math import hypot, isfinite, sqrt
from typing import Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from batchlab.probes.hooks import ForwardHook, Gatherer, Removable, Switched, on_gradient
from batchlab.probes.layers import LAYERS
from batchlab.probes.norms import Floats, Norms, place
from batchlab.probes.parts import Parts, Rows
from batchlab.probes.passes import MANY, SMALL, Later, Layer, pass_number
from batchlab.spec import UserError

Reduction = Literal["mean", "sum"]
TOLERANCE = 0.01  # of a layer's norm: half precision rounds less
ALL_COUNT = 0.1  # the whole norm's part beside a layer's: some are zero but for rounding


def unsupported(model: nn.Module) -> dict[str, str]:
    """Why per-example norms can't be had, by module name; empty where they can.

    What only a pass can show (a module called twice, inputs without a batch) comes from
    `PerExampleNorms.take`.
    """
    told: dict[str, str] = {}
    owner: dict[int, str] = {}
    for name, module in model.named_modules():
        own = {k: p for k, p in module._parameters.items() if p is not None and p.requires_grad}
        if isinstance(module, _BatchNorm):
            told[name] = "batch norm: its examples have no gradients of their own"
        elif isinstance(module, nn.parallel.DistributedDataParallel):
            told[name] = "data parallel: gradients of all ranks, inputs of one; use RankNorms"
        elif own and (type(module) not in LAYERS or not own.keys() <= {"weight", "bias"}):
            told[name] = f"parameters in a {type(module).__name__}"
        elif isinstance(module, nn.Embedding) and (module.sparse or module.scale_grad_by_freq):
            told[name] = "an embedding with sparse gradients or scale_grad_by_freq"
        for p in own.values():
            if owner.setdefault(id(p), name) != name:
                told[name] = f"a parameter shared with {owner[id(p)]}"
    return told


class PerExampleNorms(Gatherer):
    """Hooks on a model; `take` after a step's last backward pass and before clipping or stepping.

    ```
    with PerExampleNorms(model) as norms:
        statistics = NoiseStatistics(norms.names)
        for x, y in batches:
            loss(model(x), y).backward()
            statistics.update(norms.take())
            optimizer.step(), optimizer.zero_grad()
    ```

    Nothing is kept but the layers' inputs until they have gone backward, and (B) norms until they
    are taken; of small linear layers in steps of one pass inputs and output gradients, too, 32 MiB
    at the most; in the first step a gradient of every parameter besides, and `take` waits for the
    device. Set `active` to False for steps that are not measured: the model then has no hooks.
    Raises `UserError` with the names of all modules that are not supported.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        problems = [f"{name or 'the model'} ({why})" for name, why in unsupported(model).items()]
        if problems:
            raise UserError(f"no per-example gradients: {', '.join(problems)}; use chunks instead")
        self._problems: list[str] = []  # of hooks in this step
        self._later = Later()
        self._layers: list[Layer] = []
        first = 0
        for name, module in model.named_modules():
            if any(p.requires_grad for p in module._parameters.values() if p is not None):
                self._layers.append(Layer(name, module, first, self._problems, self._later))
                first += len(self._layers[-1].parameters)
        if not self._layers:
            raise UserError("the model has no parameter that is trained")
        self.names = tuple(
            f"{layer.name}.{k}".lstrip(".") for layer in self._layers for k in layer.parameters
        )
        self._parameters = [p for layer in self._layers for p in layer.parameters.values()]
        self._norms = Norms(self._parameters)
        self.whole_P: Tensor | Floats | None = None  # |.grad| by parameter, at the last `take`
        self._checked = False
        self._backward = self._layers[::-1]  # as a pass mostly comes to them
        # Whether steps are of one pass that all layers may keep, as far as is known.
        may = all(layer.simple and layer.weighed for layer in self._layers)
        self._keeps = may and self._norms.compiled and len(self._layers) <= MANY
        self._hooks = [Switched(layer.module, self._forward(layer)) for layer in self._layers]
        self.active = True

    @property
    def sizes(self) -> list[int]:
        """Examples of each micro-batch since the last `take`, as the first layer saw them."""
        first = self._layers[0]
        kept = [shape[0] for layer, _, shape, *_ in self._later.kept if layer is first]
        return [shape[0] for _, shape, _ in first.passes] + kept

    def discard(self) -> None:
        """Forget what backward passes have shown since the last `take`."""
        self._problems.clear()
        self._later.kept.clear()
        if self._later.measured:
            self._later.measured = False
            for layer in self._layers:
                layer.passes.clear()
        if not self._checked:
            for layer in self._layers:
                layer.forget()

    def take(self, reduction: Reduction = "mean", loss_scale: float | Tensor = 1.0) -> Parts:
        """The norms of a step: its examples' own from the hooks, the whole's from `.grad`.

        One backward pass a micro-batch. `reduction` is that of each micro-batch's loss over its
        examples, and `loss_scale` by what else it was multiplied before going backward: 1/M where
        gradients accumulate to their mean, and the factor of a loss scaler (a tensor, so that the
        device need not be waited for) where `.grad` still has it. The last micro-batch may be
        short. Raises `UserError` where a layer can't be told, or `.grad` is not what its examples
        add up to in the first step, naming it, and forgets the step.
        """
        told = self.take_kept(reduction)
        if told is None:
            try:
                told = self._take(reduction)
            finally:
                self.discard()
        if isinstance(loss_scale, float) and loss_scale == 1.0:
            return told
        return told._replace(norms=told.norms_2P / loss_scale)

    def take_kept(self, reduction: Reduction = "mean") -> Parts | None:
        """`take`, by no scale, where all layers have kept one pass: most steps of small ones.

        `None` where there is more or less, and nothing is taken then.
        """
        kept, layers, later = self._later.kept, self._backward, self._later
        if not kept or len(kept) != len(layers) or later.measured or self._problems:
            return None
        examples = kept[0][2][0]
        if examples < 2:
            return None
        rows: list[int] = []
        for layer, (its, _, shape, a, version, d) in zip(layers, kept, strict=True):
            there = place(a, d, shape)
            if (
                its is not layer
                or there is None
                or there[2] != examples
                or a.dtype is not self._norms.dtype
                or a._version != version
            ):
                return None
            rows += there
            rows += layer.to
        mean = reduction == "mean"
        factor = sqrt(examples if mean else 1 / examples)
        gradients = self._gradients()
        told = None if gradients is None else self._norms.with_rows(gradients, rows, factor)
        if told is None:
            return None
        kept.clear()
        self.whole_P, own_P = told
        whole = self.whole_P.tolist()
        rows_2P = own_P.tolist(), whole if mean else [v / examples for v in whole]
        return Parts(rows_2P, examples, 1.0, float(examples))

    def _take(self, reduction: Reduction) -> Parts:
        self._measure_kept()
        if self._problems:
            raise UserError(f"{self._problems[0]}; use chunks instead")
        sizes = self._sizes()
        self._keeps &= len(sizes) == 1
        examples, of_means = sum(sizes), reduction == "mean"
        if examples < 2:
            raise UserError("per-example norms need a batch of two examples or more, not of one")
        if not self._checked:
            self._check()
        # Example i of micro-batch m has weight 1 / (M B_m) in the whole, or 1/n of a sum.
        weights = [size / len(sizes) if of_means else 1 / examples for size in sizes]
        big = float(examples)
        if len(sizes) > 1 and of_means:
            big = len(sizes) ** 2 / sum(1 / b for b in sizes)
        gradients = self._gradients()
        if gradients is None:
            raise UserError("a gradient is missing: take before zero_grad")
        self._later.wanted = self._keeps and self._checked
        own_MP = [self._own(m) for m in range(len(sizes))]
        self.whole_P = whole_P = self._norms.of(gradients)
        norms_2P = _two(own_MP, weights, whole_P, len(sizes) if of_means else examples)
        return Parts(norms_2P, examples, 1.0, big)

    def _measure_kept(self) -> None:
        """As the hooks of this step should have; those of the next ones do.

        Raises `UserError` where what was kept may not be what went backward: what writes a batch
        where the one before was, between two passes, does not always show in its version.
        """
        kept, later = self._later.kept, self._later
        if not kept:
            return
        self._keeps = later.wanted = False
        numbers = {number for layer in self._layers for number, _, _ in layer.passes}
        if len(numbers | {number for _, number, *_ in kept}) > 1:
            raise UserError("the step went backward several times, those before it once")
        for layer, number, shape, a, version, d in kept:
            if a._version != version:
                raise UserError(f"{layer.name}: its input was changed in place before the step")
            layer.measure(number, shape, a, d)
        kept.clear()

    def _check(self) -> None:
        """Compare each layer's calls with `.grad`, until a step was finite and they agreed."""
        both_L = [layer.both() for layer in self._layers]
        whole = hypot(*(left for _, left in both_L))
        if not isfinite(hypot(whole, *(own for own, _ in both_L))):
            return  # a loss scaler's first steps
        for layer, (own, left) in zip(self._layers, both_L, strict=True):
            if abs(own - left) > TOLERANCE * (left + ALL_COUNT * whole):
                raise UserError(
                    f"{layer.name or 'the model'}: its gradient's norm is {left:.3g}, that of its "
                    f"examples' sum {own:.3g} (a parameter used outside its layer, a penalty on "
                    f"it, or a backward pass that is not in .grad); use chunks instead"
                )
        self._checked = True
        for layer in self._layers:
            layer.checked = True
            layer.forget()

    def _own(self, m: int) -> Tensor | list[float]:
        """sqrt(sum_i |g_i|^2) over the examples of a micro-batch (P), as the pass saw them."""
        told = [v for layer in self._layers for v in layer.passes[m][2]]
        tensors = [v for v in told if isinstance(v, Tensor)]
        if not tensors:
            return cast(list[float], told)
        own_P: Tensor = torch.linalg.vector_norm(torch.stack(tensors), dim=1)
        if len(tensors) == len(told):
            return own_P
        of_tensors = iter(own_P.tolist())  # on a CPU, as the others are
        return [next(of_tensors) if isinstance(v, Tensor) else v for v in told]

    def _gradients(self) -> list[Tensor] | None:
        """`.grad` of all parameters; `None` where one is missing."""
        told = [g for p in self._parameters if (g := p.grad) is not None]
        return told if len(told) == len(self._parameters) else None

    def _sizes(self) -> list[int]:
        """Examples of each micro-batch, if all layers agree on them."""
        first = self.sizes
        for layer in self._layers:
            sizes = [shape[0] for _, shape, _ in layer.passes]
            if len(sizes) > 1:
                if len({number for number, _, _ in layer.passes}) < len(sizes):
                    raise UserError(f"{layer.name} is called twice in one pass; use chunks instead")
                # Each forward pass has a shape of its own, which lives as long as it is listed.
                if len({id(shape) for _, shape, _ in layer.passes}) < len(sizes):
                    raise UserError(
                        f"{layer.name} went backward twice after one forward pass: add the losses "
                        f"up and go once; use chunks instead"
                    )
            if not sizes:
                raise UserError(
                    f"no gradient has passed {layer.name}: call it in every pass, on a batch"
                )
            if sizes != first:
                raise UserError(
                    f"{layer.name} saw batches of {sizes} examples, {self._layers[0].name} of "
                    f"{first}: the first dimension must be the batch in both"
                )
        return first

    def _attach(self) -> Iterable[Removable]:
        for hook in self._hooks:
            hook.put_on()
        return self._hooks

    def _forward(self, layer: Layer) -> ForwardHook:
        handles, later, kept, its = self._handles, self._later, self._later.kept, layer.module
        weighed = layer.weighed

        def forward(module: nn.Module, args: tuple[Tensor, ...], z: Tensor) -> None:
            if not args or not z.requires_grad or module is not its:
                return  # a deep copy of the model has this hook too
            a, shape, base = args[0], z.shape, z._base
            # Hooks live and die with the graph, and hold no part of it that comes later.
            if later.wanted and base is None and len(shape) == 2 and a.numel() + z.numel() <= SMALL:

                def keep(d: Tensor) -> None:
                    if handles and len(kept) < MANY:
                        kept.append((layer, pass_number(), shape, a, a._version, d))
                    else:
                        layer.look(handles, a, shape, d)

                on_gradient(z, keep)
                return
            if len(shape) < 2:
                return
            # A view that is changed in place leaves the graph; the tensor it is a view of stays.
            of = z if base is None or base.numel() != z.numel() else base
            # A bias's gradient needs no input: no memory is kept then, as autograd keeps none.
            a = a if weighed else a.new_zeros(()).expand(a.shape)
            on_gradient(of, partial(layer.look, handles, a, shape))

        return forward


def _two(
    own_MP: list[Tensor | list[float]], weights: list[float], whole_P: Tensor | Floats, total: int
) -> Tensor | Rows:
    """sqrt(sum_m w_m |own_m|^2) and the whole over `total` (2, P), on the host where all are."""
    roots = [sqrt(w) for w in weights]
    of_host = [own_P for own_P in own_MP if isinstance(own_P, list)]
    if isinstance(whole_P, np.ndarray) and len(of_host) == len(own_MP):
        scaled = [[v * root for v in own_P] for own_P, root in zip(of_host, roots, strict=True)]
        own = scaled[0] if len(scaled) == 1 else [hypot(*v_M) for v_M in zip(*scaled, strict=True)]
        whole: list[float] = whole_P.tolist()
        return own, whole if total == 1 else [v / total for v in whole]
    with torch.no_grad():
        tensors = [
            (torch.tensor(own_P, dtype=torch.float64) if isinstance(own_P, list) else own_P) * root
            for own_P, root in zip(own_MP, roots, strict=True)
        ]
        own_P = tensors[0] if len(tensors) == 1 else torch.stack(tensors).square().sum(0).sqrt()
        mean_P = torch.as_tensor(whole_P).to(own_P.dtype)
        return torch.stack([own_P, mean_P if total == 1 else mean_P / total])
