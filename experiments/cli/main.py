"""The command line: `control-llm COMMAND`, or `python -m experiments.cli COMMAND`; `--help` lists the commands.

Exit codes. 0: success; 1: an arm, the command or the gate failed; 2: wrong input; 3: a condition of `measure --gate`
does not hold; 130: stopped with Ctrl-C; 143: by SIGTERM; 129: by SIGHUP (a closed terminal). After the last three, and
after a fault of the machine (memory, disk, network; code 1), the same command continues.
A study that ended returns 0 even if trials failed, because failures are results; a study that stopped returns 1.
Modules of the bench are imported by the commands that need them, so that the others answer at once.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from experiments.cli import catalogue, compare, measure, plan, preview, run, runs, soften, study, ui
from experiments.cli.console import quiet_warnings, stop
from experiments.common.commands import command, program
from experiments.common.errors import BenchError
from experiments.common.machine_faults import of_the_machine
from experiments.common.signals import swallowed_ones_come_again
from experiments.common.threads import wait_asleep


class Once(argparse.Action):
    """Store an option's value, and refuse a second one: argparse would keep the last and say nothing.

    An option that takes several values gets those of all its places: `--new 'gsm8k*' --new 'math*'`.
    """

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        if option and self.dest in parser.given:  # type: ignore[attr-defined]
            before = getattr(namespace, self.dest)
            if not isinstance(values, list):
                raise argparse.ArgumentError(self, f"is given twice, {before} and {values}: leave one out")
            values = [*before, *values]
        parser.given.add(self.dest)  # type: ignore[attr-defined]
        setattr(namespace, self.dest, values)


class Parser(argparse.ArgumentParser):
    """Parse a command line in which no option replaces another. given: names of the options so far."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.given: set[str] = set()
        self.register("action", None, Once)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self.given = set()
        return super().parse_known_args(args, namespace)


def main(argv: list[str] | None = None) -> int:
    try:
        with swallowed_ones_come_again():
            return _run(sys.argv[1:] if argv is None else argv)
    except BrokenPipeError:  # `control-llm list | head`: the reader has what it wants
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes stdout once more at its end
        return 1
    except KeyboardInterrupt:
        return stop(130, "stopped; the same command continues where this one stopped")
    except Exception as error:
        code, message = failure(error)
        if not code:
            raise
        return stop(code, message)


def _run(words: Sequence[str]) -> int:
    if fault := unusable(words):
        return stop(2, fault)
    args = parser().parse_args(words)
    quiet_warnings()
    if "torch" not in sys.modules:
        wait_asleep(os.environ)
    code = int(args.command(args))
    sys.stdout.flush()
    return code


def unusable(words: Sequence[str]) -> str:
    """Return what is wrong with the words of a command line, before an option takes them; empty if nothing is."""
    for before, word in pairwise((program(), *words)):
        if "\0" in word:
            return "an argument contains the character NUL, which no file name can hold: leave it out"
        if not word.strip():  # an unset variable of the shell is no default
            return f"the argument after {before} is empty: give a value, or leave it out"
        if re.fullmatch(r"--[a-z-]+=\s*", word):
            return f"{word} is empty: give a value, or leave the option out"
    return ""


def parser() -> argparse.ArgumentParser:
    top = Parser(prog=program(), description="Train, measure and compare.")
    top.set_defaults(command=welcome)
    commands = top.add_subparsers(metavar="COMMAND")
    for room in (run, preview, plan, measure, soften, runs, catalogue, compare, study, ui):
        room.add(commands)
    return top


def welcome(args: argparse.Namespace) -> int:
    """Say what to do first, for a call without a command."""
    lines = {
        command("run", "quickstart"): "a first run: three methods, and what each forgets",
        command("list"): "the names that a config can contain",
        command("--help"): "all commands; README.md and docs/ explain them",
    }
    width = max(map(len, lines))
    print("\n".join(f"{line:<{width}}  {text}" for line, text in lines.items()), file=sys.stderr)
    return 2


def failure(error: Exception) -> tuple[int, str]:
    """Return the exit code and the message of an error that a user can act on. The code of any other error is 0."""
    if isinstance(error, BenchError):
        return error.exit_code, str(error)
    if isinstance(error, OSError):  # a file that may not be written, a full disk: its text names the path
        again = "; nothing recorded is lost: run the same command again when the cause is gone"
        return 1, f"{error}{again if of_the_machine(error) else ''}"
    if isinstance(error, RuntimeError) and str(error).startswith("Symlink loop"):  # pathlib's, before Python 3.13
        return 1, f"{error}: delete this link"
    from ctrl import CheckpointError, ConfigError
    from experiments.studies.locks import storage_fault

    if isinstance(error, ConfigError | CheckpointError):
        return 2 if isinstance(error, ConfigError) else 1, str(error)
    if fault := storage_fault(error):
        return 1, f"the database failed: {fault}; nothing recorded is lost, and the same command continues"
    if fault := of_the_machine(error):
        return 1, f"this is a fault of the machine: {fault}; nothing recorded is lost: run the same command again later"
    if type(error).__name__ == "OutOfMemoryError":  # torch's: importing it takes seconds
        return 1, (
            f"out of GPU memory: {str(error).splitlines()[0]} Nothing recorded is lost: end other processes on the "
            "GPU and run the same command again, or load the weights as bf16 (dtype)"
        )
    return 0, ""
