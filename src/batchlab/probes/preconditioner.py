"""The metric in which an adaptive optimizer descends steepest: of Adam, AdamW, RMSprop, Adagrad.

Such an optimizer steps by -lr D m with a diagonal D, for Adam 1 / (sqrt(v_hat) + eps). In the
coordinates u = D^(-1/2) w that step is plain gradient descent: the gradient there is D^(1/2) g, its
covariance D^(1/2) Sigma D^(1/2), the Hessian D^(1/2) H D^(1/2). The whole of McCandlish et al.
(2018, section 2) then holds with these in place of G, Sigma and H, and the simple noise scale is

    tr(D^(1/2) Sigma D^(1/2)) / |D^(1/2) G|^2 = tr(D Sigma) / (G^T D G)

with nothing put in by hand. It is that of the optimizer's own geometry as far as D is near to the
inverse Hessian up to a factor; the plain one assumes that H is near to the identity.

What it leaves out: D is taken as it stands before the step, and v_hat is itself made of noisy
gradients (about G^2 + diag(Sigma) / B, so it depends on the batch size); momentum only averages.
McCandlish et al. found mixed results with it (their appendix), and Merrill et al. (arXiv
2505.23971, 2025) that noise scales put the critical batch size of language models under Adam far
too low. Where steps are nearly the sign of the gradient no noise scale of this kind holds (Malladi
et al., 2022). Test a prediction made from it.
"""

import torch
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer, RMSprop
from torch.optim.adagrad import Adagrad

from batchlab.spec import UserError

ADAPTIVE = (Adam, AdamW, RMSprop, Adagrad)  # whose metric is known


def metric_roots(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """D^(1/2) of every trained parameter, by name, in the parameter's shape; it costs their memory.

    Call it before the backward passes of the step it is for: with D of earlier batches only, the
    norms of D^(1/2) g are those of independent examples. Plain SGD, with or without momentum, has
    D = 1. Raises `UserError` where the optimizer is of another kind or has made no step yet.
    """
    names = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        return {
            names[id(p)]: _root(optimizer, group, p)
            for group in optimizer.param_groups
            for p in group["params"]
            if id(p) in names
        }


def _root(optimizer: Optimizer, group: dict[str, object], p: Tensor) -> Tensor:
    if isinstance(optimizer, torch.optim.SGD):
        return torch.ones_like(p)
    state = optimizer.state.get(p, {})
    eps = group.get("eps")
    assert isinstance(eps, float) or eps is None
    if isinstance(optimizer, Adam | AdamW) and "exp_avg_sq" in state:
        square = state["max_exp_avg_sq"] if group["amsgrad"] else state["exp_avg_sq"]
        beta = group["betas"][1]  # type: ignore[index]
        correction = 1 - beta ** state["step"]
    elif isinstance(optimizer, RMSprop) and "square_avg" in state:
        square, correction = state["square_avg"], 1.0
        if group["centered"]:
            square = square - state["grad_avg"] ** 2
    elif isinstance(optimizer, Adagrad) and "sum" in state:
        square, correction = state["sum"], 1.0
    elif isinstance(optimizer, ADAPTIVE):
        raise UserError("the optimizer has made no step yet: measure its metric after the first")
    else:
        raise UserError(
            f"no metric is known of {type(optimizer).__name__}: Adam, AdamW, RMSprop, Adagrad, SGD"
        )
    root: Tensor = (square / correction).clamp_min_(0).sqrt_().add_(eps).rsqrt_()
    return root
