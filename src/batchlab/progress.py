"""How far the work has come and how long it will still take, on standard error."""

import time
from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

QUIET_S = 10.0  # between lines where standard error is not a terminal


class Live:
    """A bar with the time left on a terminal, a line now and then in a log file."""

    def __init__(self, console: Console | None = None, unit: str = "jobs") -> None:
        self._console = console or Console(stderr=True)
        self._unit = unit
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._weights: Sequence[float] = ()
        self._shares: list[float] = []
        self._ended = 0
        self._began = self._told = time.monotonic()

    def __enter__(self) -> "Live":
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def plan(self, weights: Sequence[float], said: str | None = None) -> None:
        """Start over with these jobs; the plan is told in so many words, or by their number."""
        self._close()
        self._weights = weights
        self._shares, self._ended = [0.0] * len(weights), 0
        self._began = self._told = time.monotonic()
        told = f"{len(weights)} {self._unit} to do" if said is None else said
        self._console.print(told, highlight=False, soft_wrap=True)
        if weights and self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f}%  {task.fields[left]}"),
                console=self._console,
            )
            self._bar.start()
            self._task = self._bar.add_task(self._said(), total=1.0, left="")

    def say(self, line: str) -> None:
        """A line above the bar."""
        self._console.print(line, highlight=False, soft_wrap=True)

    def advance(self, job: int, share: float) -> None:
        """So much more of a job is done."""
        self._shares[job] = min(1.0, self._shares[job] + share)
        self._show()

    def finish(self, job: int) -> None:
        """A job has ended."""
        self._shares[job] = 1.0
        self._ended += 1
        self._show()

    def _done(self) -> float:
        done = sum(w * s for w, s in zip(self._weights, self._shares, strict=True))
        return done / sum(self._weights)

    def _said(self) -> str:
        return f"{self._ended} of {len(self._weights)} {self._unit}"

    def _left(self) -> str:
        done, spent = self._done(), time.monotonic() - self._began
        if done < 0.01:
            return ""
        seconds = round(spent * (1 - done) / done)
        return f"{seconds // 60}:{seconds % 60:02d} left"

    def _show(self) -> None:
        if self._bar is not None:
            self._bar.update(
                self._task, completed=self._done(), description=self._said(), left=self._left()
            )
        elif time.monotonic() - self._told >= QUIET_S:
            self._told = time.monotonic()
            line = f"{self._said()}, {self._done():.0%}, {self._left()}"
            self._console.print(line, highlight=False)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
