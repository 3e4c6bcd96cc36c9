"""What is written to a terminal has colours; what is written to a file or a pipe is plain text."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable

import pytest

from experiments.cli.console import quiet_warnings, say, show, show_rows, stop

TABLE = "arm   gain\n---------------\nfull  .41 [.35,.47]\nlora  3e-4 failed: loss became nan"


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Returns what a call writes to a terminal of 40 columns that shows colours."""
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "40")

    def written(call: Callable[..., None], *args: object) -> str:
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)  # capsys has another one in each phase of a test
        call(*args)
        return capsys.readouterr().out

    return written


def test_a_pipe_gets_plain_text(capsys: pytest.CaptureFixture[str]) -> None:
    show(TABLE)
    say("  failed: x")
    assert stop(2, "no [x]") == 2
    said = capsys.readouterr()
    assert said.out == f"{TABLE}\n  failed: x\n"
    assert said.err == "error: no [x]\n"


def test_a_warning_with_text_of_others_has_no_codes_for_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A grader's error repeats the model's reply, one about a base what is noted next to the weights."""
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    quiet_warnings()
    shown = warnings.formatwarning("reply \x1b]0;title\x07", UserWarning, "graders.py", 1, "line")
    assert "UserWarning: reply \\x1b]0;title\\x07\n" in shown


def test_a_terminal_gets_colours_and_the_same_text(terminal: Callable[..., str]) -> None:
    written = terminal(show, TABLE)
    assert "\x1b[1marm   gain\x1b[0m" in written  # bold
    assert ".41 \x1b[2m[.35,.47]\x1b[0m" in written  # dim
    assert "\x1b[31mlora  3e-4 failed: loss became nan\x1b[0m" in written  # red
    assert _plain(written) == TABLE + "\n"


def test_long_lines_are_left_to_the_terminal(terminal: Callable[..., str]) -> None:
    line = "full 0.001: " + "x" * 80
    assert _plain(terminal(say, line)) == line + "\n"


def test_columns_in_a_pipe_are_never_cut(capsys: pytest.CaptureFixture[str]) -> None:
    show_rows(("name", "text"), [("a", "x" * 300), ("long name", "y [z]")])
    assert capsys.readouterr().out == f"name       text\na          {'x' * 300}\nlong name  y [z]\n"


def test_columns_on_a_terminal_fold_the_widest(terminal: Callable[..., str]) -> None:
    row = ("mlruns/runs/" + "x" * 60, "finished")
    lines = _plain(terminal(show_rows, ("folder", "status"), [row])).splitlines()
    assert max(map(len, lines)) <= 40
    assert any("finished" in line for line in lines)
    assert sum(line.count("x") for line in lines) == 60


def _plain(text: str) -> str:
    from rich.text import Text

    return Text.from_ansi(text).plain
