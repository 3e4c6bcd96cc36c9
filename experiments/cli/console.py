"""Write to the terminal: lines above a progress bar, tables, errors; and silence the libraries."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from experiments.common.paths import short_path
from experiments.common.printable import printable
from experiments.common.progress import print_line

Commands = Any  # what argparse's add_subparsers returns; its class is private
_FORMAT = warnings.formatwarning
NO_WRAP = 10_000  # columns: what is no terminal gets each row on one line
STYLES = (  # pattern, style of its matches on a terminal
    (r"\A[^\n]+(?=\n-{9,})", "bold"),  # the head of a table
    (r"(?m)^-{9,}$", "dim"),
    (r"\[[-+.,\d]+\]", "dim"),  # intervals
    (r"(?m)^ *(\S+ +){0,2}(failed|stopped|error|FAIL)\b.*", "red"),
)


def say(text: str) -> None:
    """Write a line above the progress bars, if there are any."""
    print_line(styled(text, sys.stdout))


def show(text: str, stream: TextIO | None = None) -> None:
    """Write the result of a command, for example a table. stream: default: stdout."""
    print(styled(text, stream or sys.stdout), file=stream or sys.stdout)


def show_rows(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write aligned columns, without a head if it is empty. A narrow terminal wraps the cells of the widest column.

    rows: at least one.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    terminal = sys.stdout.isatty()
    table = Table(
        box=SIMPLE_HEAD if terminal and head else None, pad_edge=False, padding=(0, 2, 0, 0), show_header=bool(head)
    )
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    for i, width in enumerate(widths):
        table.add_column(head[i] if head else "", no_wrap=width < max(widths), overflow="fold")
    for row in rows:
        table.add_row(*(_cell(Text(cell)) for cell in row))
    console = Console(file=sys.stdout, width=None if terminal else NO_WRAP, highlight=False)
    with console.capture() as captured:
        console.print(table)
    print("\n".join(line.rstrip() for line in captured.get().strip("\n").split("\n")))


def styled(text: str, stream: TextIO) -> str:
    """Return the text as it can be printed, with colours if the stream is a terminal."""
    text = printable(text)
    if not stream.isatty():
        return text
    from rich.console import Console
    from rich.text import Text

    console = Console(file=stream, highlight=False)
    with console.capture() as captured:
        console.print(_cell(Text(text)), soft_wrap=True, end="")
    return captured.get()


def _cell(text: Any) -> Any:
    for pattern, style in STYLES:
        text.highlight_regex(pattern, style)
    return text


def stop(code: int, message: str) -> int:
    """Write the reason why a command ends, and return its exit code."""
    from experiments.tracking.uri import without_password

    show(f"error: {without_password(message)}" if code != 130 else message, sys.stderr)
    return code


def quiet() -> None:
    """Silence what the libraries write about things that are meant to be so. Progress bars of the bench stay."""
    from transformers.utils import logging

    quiet_warnings()

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def quiet_warnings() -> None:
    """Silence warnings that concern the libraries' next versions. Imports nothing, unlike `quiet`."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.formatwarning = _shown_warning


def _shown_warning(*values: Any, **options: Any) -> str:
    """Return a warning as Python writes it, without codes for the terminal: it may repeat a reply, or a file's text."""
    return printable(_FORMAT(*values, **options))


def folder(text: str) -> Path:
    """Return the path of a folder that is there or can be made. Shells leave the ~ of --out=~/x as it is."""
    path = Path(text).expanduser()
    there = next(place for place in (path, *path.absolute().parents) if os.path.lexists(place))
    if not there.is_dir():
        why = "" if there == path else f": {short_path(there)} is a file"
        raise argparse.ArgumentTypeError(f"{text} is no folder{why}")
    return path


def folder_or_page(text: str) -> Path:
    """Return the path of a folder, or of a page: the name of a file that ends in .html."""
    page = Path(text).expanduser()
    return page if text.endswith(".html") and not page.is_dir() else folder(text)


def add_root(command: argparse.ArgumentParser) -> None:
    """Add the option --root, which most commands have."""
    command.add_argument("--root", type=folder, help="where results go (default: mlruns)")
