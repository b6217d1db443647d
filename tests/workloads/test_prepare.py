"""Every form of a user's model and data; what is said of them, and what is refused."""

import threading
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, SubsetRandomSampler, TensorDataset

import batchlab
from batchlab.spec import UserError
from batchlab.workloads.objective import Metric
from batchlab.workloads.prepare import prepare
from batchlab.workloads.samples import Items
from tests import own

ROWS = torch.tensor([3, 0, 17])


def test_forms_of_the_same_data_make_the_same_batches() -> None:
    x, y = own.tensors()
    forms: list[Any] = [
        (x, y),
        TensorDataset(x, y),
        own.Rows(),
        DataLoader(own.Rows(), batch_size=8, shuffle=True),
    ]
    for form in forms:
        found = own.prepared(train=form)
        assert found.train.in_memory
        assert not found.random
        told_x, told_y = found.train.batch(ROWS)
        assert torch.equal(told_x, x[ROWS])
        assert torch.equal(told_y, y[ROWS])


def test_dict_batches_go_with_the_model() -> None:
    x, y = own.tensors()
    seen = []

    def loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        seen.append(sorted(batch))
        return F.cross_entropy(model(batch["x"]), batch["y"])

    data = {"x": x, "y": y}
    found = own.prepared(train=data, validation=data, loss=loss, metric=None)
    model, _ = found.start()
    batch = found.train.batch(ROWS)
    assert seen[0] == ["x", "y"]
    expected = F.cross_entropy(model(x[ROWS]), y[ROWS])
    assert torch.equal(found.objective(model, batch), expected)


def test_a_loss_may_ask_for_the_model_with_pairs() -> None:
    def loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])

    mine, theirs = own.prepared(loss=loss), own.prepared()
    batch = mine.train.batch(ROWS)
    assert torch.equal(
        mine.objective(mine.given.model, batch), theirs.objective(theirs.given.model, batch)
    )


def test_a_loader_gives_its_size_and_its_collation() -> None:
    loader = DataLoader(own.Words(), batch_size=8, shuffle=True, collate_fn=own.padded)
    found = own.prepared(
        model=own.Speaker(), train=loader, validation=loader, loss=None, metric=None,
        batch_size=None,
    )  # fmt: skip
    assert found.batch_size == 8
    assert not found.train.in_memory
    batch = found.train.batch(torch.tensor([0, 3]))  # two words and five
    assert batch["input_ids"].shape == (2, 5)
    assert batch["input_ids"][0].tolist() == [1, 4, 0, 0, 0]
    assert any("collated batch by batch" in note for note in found.notes)


def test_random_items_stay_items() -> None:
    found = own.prepared(train=own.Rows(noise=0.1))
    assert not found.train.in_memory
    assert found.random
    assert not torch.equal(found.train.batch(ROWS)[0], found.train.batch(ROWS)[0])


def test_large_data_stay_items() -> None:
    one = 4 * own.INPUTS + 8
    stays = own.prepared(train=own.Rows())
    assert stays.train.bytes_each() == one
    items = Items(own.Rows(), torch.utils.data.default_collate, torch.device("cpu"))
    assert items.in_tensors(cap=own.SAMPLES * one).in_memory
    assert not items.in_tensors(cap=own.SAMPLES * one - 1).in_memory
    assert not items.in_tensors(seconds=0).in_memory


def test_samplers() -> None:
    subset = DataLoader(own.Rows(), batch_size=4, sampler=SubsetRandomSampler(range(5, 25)))
    found = own.prepared(train=subset)
    assert len(found.train) == 20
    assert torch.equal(found.train.batch(ROWS[1:2])[0], own.tensors()[0][5:6])
    weighted = torch.utils.data.WeightedRandomSampler([1.0] * own.SAMPLES, own.SAMPLES)
    notes = own.prepared(train=DataLoader(own.Rows(), batch_size=4, sampler=weighted)).notes
    assert any("WeightedRandomSampler is not used" in note for note in notes)


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.SyncBatchNorm])
def test_batch_norm_is_recognised(kind: Callable[[int], nn.Module]) -> None:
    found = own.prepared(kind(8))
    assert found.batch_norm == ("1",)
    assert any("per-example gradients do not exist" in note for note in found.notes)
    assert found.drop_last


def test_other_norms_are_not_batch_norm() -> None:
    found = own.prepared(nn.LayerNorm(8))
    assert found.batch_norm == ()
    assert found.notes == ()
    assert not found.drop_last


def test_dropout_is_recognised() -> None:
    found = own.prepared(nn.Dropout(0.5))
    assert found.random
    assert any("draws at random" in note for note in found.notes)
    assert not own.prepared(nn.Dropout(0.0).eval()).random


def test_a_loss_over_words_is_told_apart_unless_weighted() -> None:
    ids = own.padded([own.Words()[row] for row in range(own.SAMPLES)])
    given: dict[str, Any] = {"train": ids, "validation": ids, "loss": None, "metric": None}
    plain = own.prepared(model=own.Speaker(), **given)
    assert any("accumulation is not a large batch" in note for note in plain.notes)
    weighted = own.prepared(
        model=own.Speaker(), weight=lambda batch: (batch["labels"] >= 0).sum(), **given
    )
    assert weighted.notes == ()


def test_preparing_leaves_no_trace() -> None:
    given = own.workload(nn.BatchNorm1d(8), nn.Dropout(0.5))
    given.model.eval()
    before = {k: v.clone() for k, v in given.model.state_dict().items()}
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    prepare(given)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(v, before[k]) for k, v in given.model.state_dict().items())
    assert all(p.grad is None for p in given.model.parameters())
    assert not any(m.training for m in given.model.modules())


def test_the_model_can_be_a_transformer() -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.GPT2Config(
        vocab_size=11, n_positions=5, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    loader = DataLoader(own.Words(), batch_size=8, shuffle=True, collate_fn=own.padded)
    found = own.prepared(
        model=transformers.GPT2LMHeadModel(config), train=loader, validation=loader, loss=None,
        metric=None, batch_size=None,
    )  # fmt: skip
    assert found.random  # its dropout


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Any:
        yield from own.tensors()


def nan(output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(output, y) * float("nan")


def frozen() -> nn.Module:
    return own.mlp().requires_grad_(False)


def captured() -> Any:
    model = own.mlp()

    def loss(output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(output, y) + next(model.parameters()).square().sum()

    return own.workload(model=model, loss=loss)


def locked() -> Any:
    model = own.mlp()
    model.lock = threading.Lock()  # type: ignore[assignment]
    return own.workload(model=model)


X, Y = own.tensors()
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "few": (
        lambda: own.workload(train=(X[:15], Y[:15])),
        r"training data: 15 samples are fewer than two batches of 8; .* batch_size of 7 or less$",
    ),
    "one": (
        lambda: own.workload(train=(X[:1], Y[:1])),
        r"training data: 1 samples; give at least two",
    ),
    "unequal": (
        lambda: own.workload(train=(X, Y[:-1])),
        r"training data: tensors of 40 and 39 samples; all must have as many$",
    ),
    "form": (lambda: own.workload(train=[1, 2]), r"training data: holds int; must be a tuple of"),
    "none": (lambda: own.workload(validation=None), r"validation data: got NoneType; must be"),
    "iterable": (
        lambda: own.workload(train=DataLoader(Endless(), batch_size=4)),
        r"training data: a DataLoader over Endless, an IterableDataset without length",
    ),
    "stream": (lambda: own.workload(train=Endless()), r"training data: Endless has no length"),
    "unbatched": (
        lambda: own.workload(train=DataLoader(own.Rows(), batch_size=None)),
        r"training data: the DataLoader makes no batches itself",
    ),
    "device": (
        lambda: own.workload(train=(X.to("meta"), Y)),
        r"training data are on meta, the model is on cpu; put both on one device",
    ),
    "meta": (
        lambda: own.workload(model=own.mlp().to("meta")),
        r"model: on the device meta, without values",
    ),
    "unreduced": (
        lambda: own.workload(loss=nn.CrossEntropyLoss(reduction="none")),
        r'loss: returned the shape \(8,\); must be the batch\'s mean, .*\(reduction="mean"\)$',
    ),
    "summed": (
        lambda: own.workload(loss=nn.CrossEntropyLoss(reduction="sum")),
        r"loss: twice as large for a batch of every sample twice .* so a sum; must be",
    ),
    "number": (
        lambda: own.workload(loss=lambda o, y: F.cross_entropy(o, y).item()),
        r"loss: returned float; must be a scalar tensor with a gradient \(no \.item\(\)\)$",
    ),
    "nan": (lambda: own.workload(loss=nan), r"loss: nan on the first 8 samples before any step"),
    "detached": (
        lambda: own.workload(loss=lambda o, y: F.cross_entropy(o.detach(), y)),
        r"loss: has no gradient; must depend on parameters that require one",
    ),
    "locked": (locked, r"model: a copy: failed with TypeError: cannot pickle '_thread.lock'"),
    "captured": (captured, r"loss: uses the factory's model itself, but copies of it are trained"),
    "frozen": (
        lambda: own.workload(model=frozen()),
        r"model: all parameters are frozen; at least one",
    ),
    "no loss": (lambda: own.workload(loss=None), r"loss: none given; must be a callable"),
    "no size": (lambda: own.workload(batch_size=None), r"batch_size: none given, and the training"),
    "size": (lambda: own.workload(batch_size=0.5), r"batch_size: got 0.5; must be a whole number"),
    "optimizer": (
        lambda: own.workload(optimizer=cast(Any, lambda _: None)),
        r"optimizer: got NoneType; must",
    ),
    "foreign": (
        lambda: own.workload(optimizer=lambda _: own.sgd(own.mlp())),
        r"optimizer: 4 of its parameters are not the model's; build it on",
    ),
    "closure": (
        lambda: own.workload(optimizer=lambda m: torch.optim.LBFGS(m.parameters())),
        r"optimizer: LBFGS evaluates the loss several times a step",
    ),
    "metric": (
        lambda: own.workload(metric=F.cross_entropy),
        r"metric: got function; must be a batchlab.Metric, which says whether higher is better",
    ),
    "metric's shape": (
        lambda: own.workload(metric=Metric(lambda o, y: o.argmax(1) == y, "higher")),
        r"metric: returned the shape \(8,\); must be one number a batch",
    ),
    "wrong inputs": (
        lambda: own.workload(train=(X[:, :2], Y)),
        r"model or loss: failed on a batch of 8 samples with RuntimeError: mat1 and mat2 shapes",
    ),
    "model": (lambda: own.workload(model=F.relu), r"model: got .*; must be a torch.nn.Module"),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_what_is_wrong_is_told_in_one_line(case: str) -> None:
    make, message = REFUSED[case]
    if case == "model":
        given = own.workload()
        object.__setattr__(given, "model", F.relu)
    else:
        given = make()
    with pytest.raises(UserError, match=message) as caught:
        prepare(given)
    assert "\n" not in str(caught.value)


def test_only_a_workload_is_prepared() -> None:
    with pytest.raises(UserError, match=r"workload: got None; must be a batchlab.UserWorkload"):
        prepare(None)  # type: ignore[arg-type]


def test_the_package_has_the_public_names() -> None:
    assert batchlab.UserWorkload is type(own.workload())
    assert batchlab.Metric is Metric
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        batchlab.Nothing  # noqa: B018
