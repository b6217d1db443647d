"""TARGET of the command line: a built-in workload, or the user's own factory."""

import difflib
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch.nn import functional as F

from batchlab.spec import UserError
from batchlab.workloads import WORKLOADS
from batchlab.workloads.failures import brief
from batchlab.workloads.mlp import build
from batchlab.workloads.objective import ACCURACY
from batchlab.workloads.prepare import prepare
from batchlab.workloads.prepared import Prepared
from batchlab.workloads.seeding import seeded
from batchlab.workloads.user import UserWorkload

FORM = f"must be {', '.join(WORKLOADS)}, package.module:factory or file.py:factory"


def load_target(
    text: str, *, seed: int = 0, data_dir: Path | None = None, device: str = "cpu"
) -> Prepared:
    """The workload that TARGET names, made under `seed`, checked and ready to train.

    `package.module:factory` is imported with the current directory on the path, `file.py:factory`
    from that file; the factory is called without arguments, and again for every fresh start.
    `data_dir` and `device` are for the built-in workloads; a factory chooses its own. Raises
    `UserError`, one line that says what is wrong with TARGET, its factory or its workload.
    """
    factory = _built_in(text, data_dir, device) if text in WORKLOADS else _own(text)
    with seeded(seed):
        workload = factory()
    return prepare(workload, factory=factory)


def _built_in(name: str, data_dir: Path | None, device: str) -> Callable[[], UserWorkload]:
    """The protocol's model with plain SGD; the test split stands for validation data."""
    found = WORKLOADS[name]
    protocol, where = found.protocol, torch.device(device)
    data = found.load(data_dir).to(where, torch.float32)

    def factory() -> UserWorkload:
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        model = build(protocol.model, data.train_x.shape[1], data.classes, generator).to(where)
        return UserWorkload(
            model=model,
            train=(data.train_x, data.train_y),
            validation=(data.test_x, data.test_y),
            optimizer=torch.optim.SGD(model.parameters(), lr=protocol.learning_rate),
            loss=F.cross_entropy,
            batch_size=protocol.small,
            metric=ACCURACY,
            name=name,
        )

    return factory


def _own(text: str) -> Callable[[], UserWorkload]:
    """The factory behind `text`, which tells its own errors in one line."""
    where, colon, attribute = text.rpartition(":")
    path = where.endswith(".py")
    dotted = all(part.isidentifier() for part in where.split("."))
    if not colon or not attribute.isidentifier() or not (path or dotted):
        raise UserError(f"TARGET {text!r}: {FORM}")
    module = _file(text, Path(where)) if path else _module(text, where)
    try:
        made = getattr(module, attribute)
    except AttributeError:
        known = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        close = difflib.get_close_matches(attribute, known, 1)
        hint = f"did you mean {close[0]}?" if close else "must be a function that is defined there"
        raise UserError(f"TARGET {text!r}: {where} has no {attribute!r}; {hint}") from None
    if not callable(made):
        raise UserError(
            f"TARGET {text!r}: {attribute} is {type(made).__name__}; must be a function without "
            f"arguments that returns a batchlab.UserWorkload"
        )
    try:
        inspect.signature(made).bind()
    except TypeError as error:
        raise UserError(
            f"TARGET {text!r}: {attribute} wants arguments ({error}); must be callable without any"
        ) from None
    except ValueError:  # no signature: the call will tell
        pass
    return lambda: _call(text, attribute, made)


def _call(text: str, attribute: str, made: Callable[[], Any]) -> UserWorkload:
    try:
        workload = made()
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"TARGET {text!r}: {attribute}() raised {brief(error)}") from error
    if not isinstance(workload, UserWorkload):
        kind = "None" if workload is None else type(workload).__name__
        raise UserError(
            f"TARGET {text!r}: {attribute}() returned {kind}; must return a batchlab.UserWorkload"
        )
    return workload


def _module(text: str, name: str) -> ModuleType:
    _reachable(os.getcwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        if name == missing or name.startswith(f"{missing}."):
            raise UserError(
                f"TARGET {text!r}: no module {missing!r} here ({os.getcwd()}) or installed; {FORM}"
            ) from None
        raise UserError(
            f"TARGET {text!r}: {name} imports {missing!r}, which is not installed; install it"
        ) from None
    except (Exception, SystemExit) as error:
        raise UserError(f"TARGET {text!r}: importing {name} raised {brief(error)}") from error


def _file(text: str, path: Path) -> ModuleType:
    if not path.is_file():
        raise UserError(f"TARGET {text!r}: no file {str(path)!r}; {FORM}")
    _reachable(str(path.resolve().parent))
    name = f"batchlab_target_{path.stem}"
    found = importlib.util.spec_from_file_location(name, path.resolve())
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module  # dataclasses and pickle look modules up by name
    try:
        found.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise UserError(f"TARGET {text!r}: running {path} raised {brief(error)}") from error
    return module


def _reachable(folder: str) -> None:
    """For what the factory imports, now and when it is called."""
    if folder not in sys.path:
        sys.path.insert(0, folder)
