"""Progress: a bar on a terminal, plain lines elsewhere, and the time that is left."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable

import pytest

from experiments.common import progress as module
from experiments.common.progress import PLAIN, Task, duration, print_line, progress

CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]")  # all but the end of a line


class Clock:
    """The time, which passes only if a test says so."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Returns a function that makes stdout and stderr a terminal of 80 columns."""
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", PLAIN):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    module._console.cache_clear()

    def begin() -> None:
        for stream in (sys.stdout, sys.stderr):  # capsys has others in each phase of a test
            monkeypatch.setattr(stream, "isatty", lambda: True)

    return begin


def test_the_time_left_is_renewed_and_leaves_out_what_an_earlier_process_did(clock: Clock) -> None:
    task = Task("arm", 100, "step")
    task.begin(40)
    assert task.left() is None
    assert task.text() == "40 of 100 steps"
    clock.now += 30
    task.advance(10, loss=1.5)
    assert task.left() == 150
    assert task.text() == "50 of 100 steps, about 2 min left, loss 1.500"
    clock.now += 10
    task.advance(30, loss=1.25)
    assert task.left() == 20
    task.advance(20)
    assert task.text() == "100 of 100 steps, loss 1.250"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59, "59 s"), (61, "1 min"), (3599, "1 h 00 min"), (7500, "2 h 05 min")]
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_pipe_gets_a_plain_line_a_minute(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress("full 0.001", 12, "step", keep=True) as task, progress("evaluate", 2, "item") as inner:
        inner.advance(2)
        for _ in range(12):
            clock.now += 20
            task.advance(loss=2.0)
        print_line("a line")
    said = capsys.readouterr()
    assert said.err.splitlines() == [
        "full 0.001: 3 of 12 steps, about 3 min left, loss 2.000",
        "full 0.001: 6 of 12 steps, about 2 min left, loss 2.000",
        "full 0.001: 9 of 12 steps, about 1 min left, loss 2.000",
        "full 0.001: 12 of 12 steps, loss 2.000",
    ]
    assert said.out == "a line\n"
    assert not CONTROL.search(said.out + said.err)


@pytest.mark.parametrize(("name", "value"), [("TERM", "dumb"), (PLAIN, "1")])
def test_plain_lines_on_a_terminal_without_codes_or_of_several_processes(
    name: str,
    value: str,
    clock: Clock,
    terminal: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    terminal()
    monkeypatch.setenv(name, value)
    with progress("arm", 2, "step") as task:
        clock.now += 60
        task.advance()
    assert capsys.readouterr().err == "arm: 1 of 2 steps, about 1 min left\n"


def test_a_terminal_gets_one_bar_for_each_task_and_lines_above_them(
    clock: Clock, terminal: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    terminal()
    with progress("arm [x]", 4, "step", keep=True) as task:
        clock.now += 2
        task.advance(loss=0.5)
        with progress("evaluate", 10, "item") as inner:
            clock.now += 1
            inner.advance(5)
        print_line("x" * 100)
        clock.now += 1
        task.advance(3)
    said = capsys.readouterr()
    assert said.out == ""
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", said.err)
    assert re.search(r"arm \[x\] \S+ +1 of 4 steps, about 6 s left, loss 0.500", text)
    assert re.search(r"evaluate \S+ +5 of 10 items, about 1 s left", text)
    assert "x" * 100 in text  # not cut at the width of the terminal
    frames = [line for line in re.split(r"[\r\n]+", text) if line.strip()]
    assert re.search(r"arm \[x\] \S+ +4 of 4 steps, loss 0.500", frames[-1])  # the bar that stays is the last line
    assert said.err.endswith("\x1b[?25h")  # the cursor is back


def test_an_error_puts_the_terminal_back(terminal: Callable[[], None], capsys: pytest.CaptureFixture[str]) -> None:
    terminal()
    before, inside = (sys.stdout, sys.stderr), []

    def fail() -> None:
        with progress("arm", 4, "step"):
            inside.append(sys.stderr)
            raise KeyError("broken")

    with pytest.raises(KeyError, match="broken"):
        fail()
    assert inside != [before[1]]  # other prints of the block go above the bar
    assert (sys.stdout, sys.stderr) == before
    said = capsys.readouterr().err
    assert said.rfind("\x1b[?25h") > said.rfind("\x1b[?25l") >= 0  # the cursor is back
    print_line("after")
    assert capsys.readouterr().out == "after\n"


def test_the_other_processes_show_nothing(
    clock: Clock, terminal: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    terminal()
    with progress("arm", 2, "step", shown=False) as task:
        clock.now += 100
        task.advance(loss=1.0)
    assert task.done == 1
    assert capsys.readouterr() == ("", "")
