"""The metric in which an adaptive optimizer descends steepest: of Adam, AdamW, RMSprop, Adagrad.

Such an optimizer steps by -lr D m with a diagonal D, for Adam 1 / (sqrt(v_hat) + eps). In the
coordinates u = D^(-1/2) w that step is plain gradient descent: the gradient there is D^(1/2) g, its
covariance D^(1/2) Sigma D^(1/2), the Hessian D^(1/2) H D^(1/2). The whole of McCandlish et al.
(2018, section 2) then holds with these in place of G, Sigma and H, and the simple noise scale is

    tr(D^(1/2) Sigma D^(1/2)) / |D^(1/2) G|^2 = tr(D Sigma) / (G^T D G)

with nothing put in by hand. It is that of the optimizer's own geometry as far as D is near to the
inverse Hessian up to a factor; the plain one assumes that H is near to the identity.

Where v, the second moment, is zero, D is 1 / eps, and the first example that reaches such a weight
would outweigh all others. These weights are left out, with those that the optimizer does not have
or has not stepped yet: their D^(1/2) is given as zero.

What it leaves out: D is taken as it stands before the step, and v_hat is itself made of noisy
gradients (about G^2 + diag(Sigma) / B, so it depends on the batch size); momentum only averages.
McCandlish et al. found mixed results with it (their appendix), and Merrill et al. (arXiv
2505.23971, 2025) that noise scales put the critical batch size of language models under Adam far
too low. Where steps are nearly the sign of the gradient no noise scale of this kind holds (Malladi
et al., 2022). Test a prediction made from it.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer, RMSprop
from torch.optim.adagrad import Adagrad

from batchlab.spec import UserError

ADAPTIVE = (Adam, AdamW, RMSprop, Adagrad)  # whose metric is known


class NoStepYet(UserError):  # noqa: N818, not an error
    """The optimizer has made no step, and so has no metric; it will have one."""


def metric_roots(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """D^(1/2) of every trained parameter, by name, in the parameter's shape; it costs their memory.

    Zero for weights that are to be left out (the module says which). Call it before the backward
    passes of the step it is for: with D of earlier batches only, the norms of D^(1/2) g are those
    of independent examples. Plain SGD, with or without momentum, has D = 1. Raises `NoStepYet`
    where no parameter has been stepped, `UserError` where the optimizer is of another kind or has
    no parameter of the model.
    """
    if not isinstance(optimizer, (*ADAPTIVE, torch.optim.SGD)):
        raise UserError(
            f"no metric is known of {type(optimizer).__name__}: Adam, AdamW, RMSprop, Adagrad, SGD"
        )
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    there = {name: p for name, p in trained.items() if id(p) in groups}
    if not there:
        raise UserError("the optimizer has no parameter of the model: give the one that trains it")
    with torch.no_grad():
        roots = {name: _root(optimizer, groups[id(p)], p) for name, p in there.items()}
        if all(root is None for root in roots.values()):
            raise NoStepYet("the optimizer has made no step yet: measure its metric after one")
        return {
            name: p.new_zeros(()).expand_as(p) if (root := roots.get(name)) is None else root
            for name, p in trained.items()
        }


def _root(optimizer: Optimizer, group: dict[str, Any], p: Tensor) -> Tensor | None:
    """None where the parameter has made no step."""
    if isinstance(optimizer, torch.optim.SGD):
        return torch.ones_like(p)
    state = optimizer.state.get(p)
    if not state:
        return None
    correction: float | Tensor = 1.0
    if isinstance(optimizer, Adagrad):
        if state["step"] == 0:  # its state is there from the beginning
            return None
        square = state["sum"]
    elif isinstance(optimizer, RMSprop):
        square = state["square_avg"]
        if group["centered"]:
            square = square - state["grad_avg"] ** 2
    else:
        square = state["max_exp_avg_sq"] if group["amsgrad"] else state["exp_avg_sq"]
        correction = 1 - group["betas"][1] ** state["step"]
    root: Tensor = (square / correction).clamp_min_(0).sqrt_().add_(group["eps"]).rsqrt_()
    return root.masked_fill_(square <= 0, 0)
