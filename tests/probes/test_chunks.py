"""Chunks' norms against gradients of each chunk by itself, plain and in an optimizer's metric."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from batchlab.probes.chunks import ChunkNorms
from batchlab.probes.preconditioner import NoStepYet, metric_roots
from batchlab.spec import UserError


class Model(nn.Module):
    """A layer called twice, one tied to a table, one that long inputs alone reach."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.fc = nn.Embedding(7, 4), nn.Linear(4, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.table.weight
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        z = self.fc(self.fc(self.table(x)).tanh())
        told: Tensor = self.head(z * self.scale if len(x) > 2 else z)
        return told


def model_and_chunks() -> tuple[Model, list[Tensor]]:
    torch.manual_seed(0)
    return Model().double(), list(torch.randint(7, (8, 3)).split([3, 3, 2]))


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Of the chunk's mean loss."""
    loss = model(x).square().sum((1, 2)).mean()
    names, parameters = zip(*model.named_parameters(), strict=True)
    told = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    return dict(zip(names, told, strict=True))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_against_each_chunk_by_itself(reduction: str) -> None:
    model, chunks = model_and_chunks()
    own = [gradients(model, x) for x in chunks]
    model.zero_grad()
    with ChunkNorms(model) as norms:
        for x in chunks:
            loss = model(x).square().sum((1, 2))
            ((loss.mean() if reduction == "mean" else loss.sum()) / 3).backward()
            norms.close(len(x))
        told = norms.take(reduction, 1 / 3)  # type: ignore[arg-type]
    weight = [1 / 3] * 3 if reduction == "mean" else [3 / 8, 3 / 8, 2 / 8]
    noise = [w / len(x) for w, x in zip(weight, chunks, strict=True)]
    assert 1 / told.small == pytest.approx(sum(noise))
    assert 1 / told.big == pytest.approx(sum(w * v for w, v in zip(weight, noise, strict=True)))
    assert norms.names == tuple(own[0])
    for p, name in enumerate(norms.names):
        square = sum(w * g[name].square().sum() for w, g in zip(weight, own, strict=True))
        whole = sum(w * g[name] for w, g in zip(weight, own, strict=True))
        assert isinstance(whole, Tensor)
        expected = torch.stack([torch.as_tensor(square).sqrt(), whole.norm()])
        torch.testing.assert_close(told.norms_2P[:, p], expected, rtol=1e-10, atol=1e-15)


def test_the_hooks_go_and_leave_gradients_alone() -> None:
    model, chunks = model_and_chunks()
    expected = gradients(model, chunks[0])
    norms = ChunkNorms(model)
    model(chunks[0]).square().sum((1, 2)).mean().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None
        assert torch.equal(p.grad, expected[name])
    norms.remove()
    model(chunks[0]).sum().backward()
    with pytest.raises(UserError, match="no gradient was seen"):
        norms.close(2)


def test_users_errors() -> None:
    model, chunks = model_and_chunks()
    with ChunkNorms(model) as norms:
        model(chunks[0]).sum().backward()
        with pytest.raises(UserError, match="was not closed"):
            norms.take()
        model(chunks[0]).sum().backward()
        norms.close(3)
        with pytest.raises(UserError, match="not in 1"):
            norms.take()
        model(chunks[0]).sum().backward()
        model(chunks[1]).sum().backward()
        with pytest.raises(UserError, match="two backward passes in one chunk"):
            norms.close(3)
    with pytest.raises(UserError, match="no parameter"):
        ChunkNorms(model.requires_grad_(False))


OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "adam": lambda p: torch.optim.Adam(p, lr=1e-3, betas=(0.0, 0.9), eps=1e-3),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=1e-3, betas=(0.0, 0.9), amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3, betas=(0.0, 0.99), weight_decay=0),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, alpha=0.9, eps=1e-3),
    "centered": lambda p: torch.optim.RMSprop(p, lr=1e-3, alpha=0.9, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-3, eps=1e-3),
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-3),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_the_optimizer_steps_by_its_metric(kind: str) -> None:
    """Without momentum its step is -lr D g, with D of the state after that step."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    optimizer = OPTIMIZERS[kind](list(model.parameters()))
    for _ in range(3):
        optimizer.zero_grad()
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        model(torch.randn(4, 3).double()).square().sum().backward()
        optimizer.step()
    roots = metric_roots(model, optimizer)
    for name, p in model.named_parameters():
        assert p.grad is not None
        torch.testing.assert_close(
            before[name] - p.detach(), 1e-3 * roots[name] ** 2 * p.grad, rtol=1e-6, atol=1e-14
        )


def test_norms_in_the_metric_are_those_in_rescaled_coordinates() -> None:
    """w = D^(1/2) u: the gradient by u is the gradient by w times D^(1/2)."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(4, 3).double()).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    roots = metric_roots(model, optimizer)
    u = {n: (p / roots[n]).detach().requires_grad_() for n, p in model.named_parameters()}
    chunks = torch.randn(2, 4, 3).double()
    own = []
    for x in chunks:
        z = torch.func.functional_call(model, {n: v * roots[n] for n, v in u.items()}, x)
        own.append(torch.autograd.grad(z.square().sum(1).mean(), list(u.values())))
    with ChunkNorms(model) as norms:
        norms.roots = roots
        for x in chunks:
            (model(x).square().sum(1).mean() / 2).backward()
            norms.close(len(x))
        told = norms.take(loss_scale=0.5)
    for p in range(2):
        a, b = own[0][p], own[1][p]
        expected = torch.stack([((a.norm() ** 2 + b.norm() ** 2) / 2).sqrt(), (a + b).norm() / 2])
        torch.testing.assert_close(told.norms_2P[:, p], expected, rtol=1e-10, atol=0)


def test_a_metric_needs_a_step_and_a_known_optimizer() -> None:
    model = nn.Linear(3, 2)
    for optimizer in (torch.optim.Adam, torch.optim.RMSprop, torch.optim.Adagrad):
        with pytest.raises(NoStepYet, match="no step yet"):
            metric_roots(model, optimizer(model.parameters()))
    with pytest.raises(UserError, match="no parameter of the model"):
        metric_roots(model, torch.optim.SGD(nn.Linear(3, 2).parameters()))
    with pytest.raises(UserError, match="no metric is known of Rprop"):
        metric_roots(model, torch.optim.Rprop(model.parameters()))


@pytest.mark.parametrize("kind", ["adam", "rmsprop", "adagrad"])
def test_what_has_no_metric_does_not_count(kind: str) -> None:
    """A head that nothing uses, a layer that the optimizer lacks, an input that was always 0."""
    torch.manual_seed(0)
    model = nn.ModuleDict({k: nn.Linear(3, 2) for k in ("used", "unused", "lacking")})
    optimizer = OPTIMIZERS[kind]([*model["used"].parameters(), *model["unused"].parameters()])
    x = torch.randn(4, 3)
    x[:, 1] = 0
    with ChunkNorms(model) as norms:
        for steps in range(2):
            for part in (x, x.flip(0) + steps):
                z = model["used"](part) + model["lacking"](part)
                (z.square().sum(1).mean() / 2).backward()
                norms.close(4)
            told = norms.take(loss_scale=0.5)
            optimizer.step()
            model.zero_grad()
            if not steps:
                norms.roots = roots = metric_roots(model, optimizer)
    counted = told.norms_2P.bool().all(0).tolist()
    assert counted == [name.startswith("used") for name in norms.names]
    assert set(roots) == set(norms.names)
    assert not roots["used.weight"][:, 1].any()
    assert roots["used.weight"][:, [0, 2]].all()


@pytest.mark.parametrize("metric", [False, True])
def test_sparse_gradients_have_the_norms_of_dense_ones(metric: bool) -> None:
    _, chunks = model_and_chunks()
    told = []
    for sparse in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(7, 4, sparse=sparse), nn.Flatten(), nn.Linear(12, 2))
        with ChunkNorms(model) as norms:
            if metric:
                norms.roots = {
                    name: torch.linspace(0.5, 2, p.numel()).view_as(p)
                    for name, p in model.named_parameters()
                }
            for x in chunks:
                (model(x).square().sum(1).mean() / 3).backward()
                norms.close(len(x))
            told.append(norms.take(loss_scale=1 / 3).norms_2P)
    assert told[0].all()
    torch.testing.assert_close(*told)


@pytest.mark.parametrize("to_none", [True, False])
def test_gradients_that_go_within_a_step_are_told(to_none: bool) -> None:
    """As with an adversarial example from a backward pass of its own."""
    model, chunks = model_and_chunks()
    with ChunkNorms(model) as norms:
        model(chunks[0]).sum().backward()
        assert norms.compare()
        model.zero_grad(set_to_none=to_none)
        with pytest.raises(UserError, match=r"has the norm .*, \.grad has 0:"):
            norms.compare()
