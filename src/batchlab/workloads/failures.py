"""Errors that come from the user's code, as one line that says where."""

import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from batchlab.spec import UserError

_PACKAGE, _LIBRARY = Path(__file__).parents[1], Path(sysconfig.get_path("stdlib"))
_CALLS = Path(__file__).with_name("objective.py")  # from where the user's model and loss are called


@contextmanager
def trying(what: str, count: int | None = None) -> Iterator[None]:
    """Any error as one line that says where it was raised: for code that is the user's."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        on = "" if count is None else f" on a batch of {count} samples"
        raise UserError(f"{what}: failed{on} with {brief(error)}") from error


@contextmanager
def training(what: str, smaller: str) -> Iterator[None]:
    """An error of the user's code in the middle of a run as one line; one of ours as it is.

    The line begins with `what`; `smaller` says what to do where memory did not suffice.
    """
    try:
        yield
    except UserError:
        raise
    except torch.OutOfMemoryError as error:
        first = str(error).splitlines()[0]
        raise UserError(f"{what}: out of memory ({first}); must fit: {smaller}") from error
    except Exception as error:
        if not _theirs(error):
            raise
        raise UserError(f"{what}: failed with {brief(error)}") from error


def _theirs(error: BaseException) -> bool:
    """Whether it was raised in the user's code, or by PyTorch within the user's model."""
    files = [Path(f.filename) for f in traceback.extract_tb(error.__traceback__)[1:]]
    ours = [f for f in files if f.is_relative_to(_PACKAGE)]
    return ours[-1:] == [_CALLS] or any(map(_users, files))


def _users(file: Path) -> bool:
    """Whether it is neither this package's nor Python's nor an installed one's."""
    known = file.is_relative_to(_PACKAGE) or file.is_relative_to(_LIBRARY)
    return not known and "site-packages" not in file.parts and not file.name.startswith("<")


def brief(error: BaseException) -> str:
    """`ValueError: the message's first line (file.py, line 3)`, of the deepest frame that is the
    user's: neither PyTorch's nor this package's."""
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [f for f in frames if _users(Path(f.filename))]
    at = (theirs or list(frames))[-1:] or None
    lines = str(error).strip().splitlines()
    message = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    if at is None or isinstance(error, SyntaxError):  # which names its own file and line
        return message
    return f"{message} ({at[0].filename}, line {at[0].lineno})"
