"""Triton's interpreter with its programs side by side, each in a process: they may wait for each
other, as those of a cooperative launch do.

The interpreter chooses once and for all, when a kernel is defined: this module has to be imported
before. On a GPU kernels are compiled, and nothing here is used.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any

import torch

from batchlab.engine.launching import TRITON

INTERPRETED = TRITON and not torch.cuda.is_available()
TIMEOUT_S = 300.0

if INTERPRETED:
    os.environ["TRITON_INTERPRET"] = "1"


def prepare() -> None:
    """What this NumPy and processes on one memory ask of the interpreter."""
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patch_tensor(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        # Triton 3.6 converts an array of one element, which NumPy 2.4 no longer does.
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch_tensor
    # Arguments are used where they lie, so that nothing is to be copied back.
    interpreter.GridExecutor._restore_args_dev = lambda *_: None


def passes(module: str, call: str) -> None:
    """A call in a test module passes by the interpreter, in a process of its own."""
    code = (
        "from tests.engine.interpreted import prepare; prepare(); "
        f"import {module} as module; module.{call}; print('passed')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "passed", done.stderr


def program(index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """One of a launch's programs, in this process."""
    import triton.language as tl
    from triton.runtime import interpreter

    from batchlab.engine.resident_kernel import take

    def program_id(_: int) -> Any:
        return interpreter.TensorHandle(interpreter.np.array([index], dtype="int32"), tl.int32)

    interpreter.interpreter_builder.create_get_program_id = program_id
    take[(1,)](*args, **kwargs)


class SideBySide:
    """In the place of the kernel: a launch gives each program to a process."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
        def launch(*args: Any, **kwargs: Any) -> None:
            shared = tuple(
                a.clone().share_memory_() if isinstance(a, torch.Tensor) else a for a in args
            )
            work = [(index, shared, kwargs) for index in range(grid[0])]
            self._pool.starmap_async(program, work, chunksize=1).get(TIMEOUT_S)
            for a, b in zip(args, shared, strict=True):
                if isinstance(a, torch.Tensor):
                    a.copy_(b)

        return launch


@contextmanager
def side_by_side(programs: int) -> Iterator[SideBySide]:
    """Processes for so many programs at once."""
    with torch.multiprocessing.get_context("spawn").Pool(programs, prepare) as pool:
        yield SideBySide(pool)
