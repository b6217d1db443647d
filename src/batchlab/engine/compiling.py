"""Whether `torch.compile` pays for a model on this machine: tried, timed and only then used.

The rule. No compiler, no try. Eager passes are timed; a fifth of the time that the job still takes
is what compiling may cost, `CAP_S` at the most, and where that is less than `LEAST_S` the job is
too short. Compiling that fails or takes longer than that is given up. Eager and compiled passes
then take turns, and compiled ones are used where they are at least `GAIN` times as fast in the
median round and faster in all rounds but one at the most.
"""

import os
import shutil
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

import torch

from batchlab.engine.launching import TRITON
from batchlab.engine.timing import seconds, synchronize

CAP_S = 60.0
LEAST_S = 10.0
SHARE = 0.2  # of the time left, spent on compiling at the most
ROUNDS = 7
TURN_S = 0.02  # short passes are repeated for so long in a turn
AGAIN_S = 5.0  # an alarm that is swallowed on its way (by a destructor, say) comes again
GAIN = 1.05

Pass = Callable[[], object]  # forward and backward


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether to use the compiled model, and why, in a line. Seconds are medians a pass."""

    use: bool
    note: str
    eager_s: float | None = None
    compiled_s: float | None = None
    compile_s: float | None = None


def decide(
    eager: Pass, compiled: Pass, device: torch.device, steps_left: int, *, forced: bool = False
) -> Verdict:
    """Try it by the rule above; `forced` skips all but the compiler, the cap and a failure.

    The passes must leave nothing behind that the caller does not put back. Never raises for what
    compiling does.
    """
    missing = _missing(device)
    if missing:
        return Verdict(False, f"eager: {missing}")
    seconds(eager, device)
    eager_s = median(seconds(eager, device) for _ in range(3))
    cap = min(CAP_S, SHARE * eager_s * steps_left)
    if not forced and cap < LEAST_S:
        return Verdict(
            False,
            f"eager: {eager_s * steps_left:.3g} s of passes are left, and compiling is tried from "
            f"{LEAST_S / SHARE:.0f} s",
            eager_s,
        )
    began = time.perf_counter()
    try:
        with warnings.catch_warnings(), _alarm(CAP_S if forced else cap):
            warnings.simplefilter("ignore")
            compiled()
            compiled()
            synchronize(device)
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0]
        return Verdict(
            False, f"eager: compiling failed ({type(error).__name__}: {first})"[:300], eager_s
        )
    compile_s = time.perf_counter() - began
    times = max(1, int(TURN_S / max(eager_s, 1e-5)))
    pairs = [
        (seconds(eager, device, times), seconds(compiled, device, times)) for _ in range(ROUNDS)
    ]
    gain = median(a / b for a, b in pairs)
    eager_s, compiled_s = (median(column) for column in zip(*pairs, strict=True))
    won = gain >= GAIN and sum(b < a for a, b in pairs) >= ROUNDS - 1
    told = f"{gain:.2f} times as fast as eager, {compile_s:.1f} s to compile"
    use = won or forced
    return Verdict(
        use, f"{'compiled' if use else 'eager: compiled is'} {told}", eager_s, compiled_s, compile_s
    )


def _missing(device: torch.device) -> str | None:
    """What `torch.compile` needs and is not here."""
    if device.type == "cuda" and not TRITON:
        return "no Triton to compile with"
    names = [os.environ.get("CXX", ""), "g++", "clang++", "cl"]
    if device.type == "cpu" and not any(name and shutil.which(name) for name in names):
        return "no C++ compiler"
    return None if _stoppable() else "compiling could not be stopped here (no alarms)"


def _stoppable() -> bool:
    """Alarms are the main thread's, and not every system has them."""
    return hasattr(signal, "setitimer") and (threading.current_thread() is threading.main_thread())


@contextmanager
def _alarm(limit_s: float) -> Iterator[None]:
    """`TimeoutError` within, after so many seconds."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"more than {limit_s:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, limit_s, AGAIN_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
