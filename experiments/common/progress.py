"""Show how far a long task is: a bar on a terminal, and elsewhere a plain line now and then.

Both are written to stderr and show the same text: `full 0.001: 40 of 80 steps, about 3 min left, loss 1.234`. Tasks may
be nested, such as an evaluation during training.
"""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

PLAIN = "CONTROL_LLM_PLAIN"  # environment variable: if set, lines also on a terminal, which several processes share
BETWEEN_LINES = 60.0  # seconds between two plain lines of a task
BETWEEN_FRAMES = 0.1  # seconds between two pictures of a bar
_open_bars: list[Task] = []


@dataclass
class Task:
    """How far a task is, and how long the rest will take at the mean speed so far.

    unit: the singular. done: of `total`, of which `before` were not done by this process. figures: the latest ones.
    show: called after each change.
    """

    name: str
    total: int
    unit: str
    show: Callable[[], object] = lambda: None
    figures: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.begin(0)

    def begin(self, done: int) -> None:
        """Begin, or go on after what an earlier process has done."""
        self.done = self.before = done
        self.begun = time.monotonic()

    def advance(self, count: int = 1, **figures: float) -> None:
        self.done += count
        self.figures |= figures
        self.show()

    def left(self) -> float | None:
        """Return the seconds that the rest will take; None if nothing is known yet."""
        own = self.done - self.before
        return (time.monotonic() - self.begun) / own * (self.total - self.done) if own else None

    def text(self) -> str:
        """Return numbers, time left and figures in one line, without the name."""
        left = self.left()
        parts = [f"{self.done} of {self.total} {self.unit}s"]
        if left and self.done < self.total:
            parts.append(f"about {duration(left)} left")
        return ", ".join([*parts, *(f"{name} {value:.3f}" for name, value in self.figures.items())])


def duration(seconds: float) -> str:
    """Return a time in words: 12 s, 3 min, 2 h 05 min."""
    minutes = round(seconds / 60)
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


@contextmanager
def progress(name: str, total: int, unit: str, shown: bool = True, keep: bool = False) -> Iterator[Task]:
    """Show the progress of the block, which calls `advance` of the task. keep: leave the bar on the terminal.

    shown: False in all but one of several processes.
    """
    task = Task(name, total, unit)
    display = nullcontext(lambda: None) if not shown else _bar(task, keep) if _has_bars() else _lines(task)
    with display as task.show:
        yield task


def print_line(text: str) -> None:
    """Print a line, above the bars if there are any. It may have colours."""
    if not (_open_bars and sys.stdout.isatty()):
        print(text, flush=True)
        return
    from rich.text import Text

    _console().print(Text.from_ansi(text), soft_wrap=True)


def _has_bars() -> bool:
    return sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown") and not os.environ.get(PLAIN)


@functools.cache
def _console() -> Console:
    """Return the only console with bars: nested ones have to share it."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


@contextmanager
def _bar(task: Task, keep: bool) -> Iterator[Callable[[], object]]:
    from rich.progress import BarColumn, Progress, TextColumn

    # no thread that draws: it would hold locks while other threads fork
    bars = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[text]}", markup=False),
        console=_console(),
        auto_refresh=False,
        transient=not keep,
        redirect_stdout=sys.stdout.isatty(),
    )
    drawn = [0.0]
    row = bars.add_task(task.name, total=task.total, text="")

    def show() -> None:
        now = time.monotonic()
        refresh = now - drawn[0] >= BETWEEN_FRAMES
        drawn[0] = now if refresh else drawn[0]
        bars.update(row, completed=task.done, text=task.text(), refresh=refresh)

    _open_bars.append(task)
    try:
        with bars:
            yield show
    finally:
        _open_bars.remove(task)


@contextmanager
def _lines(task: Task) -> Iterator[Callable[[], object]]:
    said = [time.monotonic()]

    def show() -> None:
        if (now := time.monotonic()) - said[0] >= BETWEEN_LINES:
            said[0] = now
            print(f"{task.name}: {task.text()}", file=sys.stderr, flush=True)

    yield show
