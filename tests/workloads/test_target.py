"""TARGET: built-in names, the user's own factory, and one line for whatever is wrong with it."""

import sys
from pathlib import Path

import pytest
import torch

from batchlab.spec import UserError
from batchlab.workloads.prepared import Prepared
from batchlab.workloads.target import load_target

GOOD = """
import torch
from batchlab import UserWorkload

def factory():
    model = torch.nn.Linear(4, 1)
    g = torch.Generator().manual_seed(0)
    x = torch.randn(30, 4, generator=g)
    data = (x, x.sum(1, keepdim=True))
    return UserWorkload(
        model=model, train=data, validation=data, loss=torch.nn.functional.mse_loss,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1), batch_size=5, name="mine",
    )

def raising():
    x = 1
    raise ValueError("no such corpus\\nand more")

def exits():
    raise SystemExit("bye")

def nothing():
    pass

def wants(path):
    pass

def other_every_time(sizes=iter((4, 5))):
    import dataclasses
    made = factory()
    model = torch.nn.Linear(4, 1, bias=next(sizes) == 4)
    return dataclasses.replace(
        made, model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1)
    )

VALUE = 3
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in [n for n in sys.modules if n.startswith("own_")]:  # of the test before
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "own_good.py").write_text(GOOD)
    (tmp_path / "own_broken.py").write_text("x = 1\ny = x / 0\n")
    (tmp_path / "own_syntax.py").write_text("x = 1\ny = (\n")
    (tmp_path / "own_missing.py").write_text("import nowhere_to_be_had\n")
    return tmp_path


@pytest.mark.parametrize(
    "text", ["own_good:factory", "own_good.py:factory", "./own_good.py:factory"]
)
def test_a_factory_by_module_and_by_file(text: str) -> None:
    found = load_target(text)
    assert (found.name, found.batch_size, len(found.train)) == ("mine", 5, 30)
    assert found.learning_rate == 0.1


def first_weight(found: Prepared, seed: int | None = None) -> torch.Tensor:
    return next(found.start(seed).model.parameters())


def test_fresh_starts_differ_by_the_seed_alone() -> None:
    torch.manual_seed(5)
    found = load_target("own_good:factory", seed=1)
    given = first_weight(found)
    assert torch.equal(given, first_weight(load_target("own_good:factory", seed=1)))
    torch.rand(3)
    weights = [first_weight(found, seed) for seed in (1, 2, 2)]
    assert torch.equal(weights[0], given)
    assert not torch.equal(weights[0], weights[1])
    assert torch.equal(weights[1], weights[2])


def test_digits_by_name() -> None:
    found = load_target("digits")
    assert found.name == "digits"
    assert len(found.train) == 1437
    assert found.given.metric is not None
    assert not torch.equal(first_weight(found, 1), first_weight(found, 2))


def test_the_data_are_the_one_thing_that_stays() -> None:
    found = load_target("own_good:other_every_time")
    with pytest.raises(UserError, match=r"the factory made a model of other parameters"):
        found.start(1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("resnet", r"^TARGET 'resnet': must be digits, mnist, package.module:factory or file"),
        ("a b:factory", r"must be digits, mnist"),
        ("own_good:", r"must be digits, mnist"),
        ("own_good:2x", r"must be digits, mnist"),
        ("own_nowhere:factory", r"no module 'own_nowhere' here \(.*\) or installed; must be"),
        ("own_good.sub:factory", r"importing own_good.sub|no module|not a package"),
        ("nowhere.py:factory", r"no file 'nowhere.py'; must be"),
        ("own_missing:factory", r"own_missing imports 'nowhere_to_be_had', which is not installed"),
        ("own_broken:f", r"importing own_broken raised ZeroDivisionError: .*own_broken.py, line 2"),
        ("own_broken.py:f", r"running own_broken.py raised ZeroDivisionError: .*line 2\)$"),
        ("own_syntax:f", r"importing own_syntax raised SyntaxError: .*own_syntax.py, line 2\)$"),
        ("own_good:factori", r"own_good has no 'factori'; did you mean factory\?$"),
        ("own_good:zzz", r"own_good has no 'zzz'; must be a function that is defined there$"),
        ("own_good:VALUE", r"VALUE is int; must be a function without arguments"),
        ("own_good:wants", r"wants wants arguments \(missing a required argument: 'path'\)"),
        ("own_good:nothing", r"nothing\(\) returned None; must return a batchlab.UserWorkload$"),
        (
            "own_good:raising",
            r"raising\(\) raised ValueError: no such corpus \(.*own_good.py, line 17\)$",
        ),
        ("own_good:exits", r"exits\(\) raised SystemExit: bye"),
    ],
)
def test_what_is_wrong_with_a_target(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_target(text)
    assert "\n" not in str(caught.value)
