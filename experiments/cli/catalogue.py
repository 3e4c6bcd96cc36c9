"""The command `list`: the names that a YAML can contain, with a line each from the tables and their docstrings.

Most tables load torch, which takes seconds. So `python -m docs.generate` writes their lines to `catalogue.json`, and
`list` reads that file.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

from experiments.cli.console import Commands, show_rows
from experiments.common.errors import ConfigError
from experiments.common.files import read_json, write_json
from experiments.common.paths import SHIPPED

FILE = Path(__file__).with_name("catalogue.json")


def add(commands: Commands) -> None:
    one = commands.add_parser("list", help="list the names that a YAML can contain: methods, suites and others")
    one.add_argument("kind", nargs="?", help=f"one of {', '.join(KINDS)} (default: all of them)")
    one.set_defaults(command=list_command)


def list_command(args: argparse.Namespace) -> int:
    if args.kind is not None and args.kind not in KINDS:
        from experiments.common.section import nearest

        raise ConfigError(f"unknown kind {args.kind!r}: {nearest(args.kind, KINDS)}")
    for i, kind in enumerate([args.kind] if args.kind else KINDS):
        print(("\n" if i else "") + f"{kind} ({KINDS[kind]})")
        show_rows((), [(f"  {name}", text) for name, text in entries(kind).items()])
    return 0


def entries(kind: str) -> dict[str, str]:
    """Return the names of a kind with a line each: of the shipped YAML files, or as `write` left them."""
    if kind in FILES:
        return _files(FILES[kind])
    found: dict[str, str] = read_json(FILE)[kind]
    return found


def described_tables() -> dict[str, dict[str, str]]:
    """Return the names of all tables with a line each, by kind."""
    return {kind: table() for kind, table in TABLES.items()}


def write() -> None:
    """Write `described_tables` to the file that `list` reads."""
    write_json(FILE, described_tables())


def first_sentence(text: str | None) -> str:
    """Return the first sentence of a docstring or a comment, on one line."""
    paragraph = " ".join((text or "").strip().split("\n\n")[0].split())
    return re.split(r"(?<=[.?!])\s+(?=[A-Z`0-9])", paragraph)[0]


def described(table: Mapping[str, Any]) -> dict[str, str]:
    """Return the first sentence on each entry of a table: of its `meaning`, or of its docstring."""
    return {name: first_sentence(getattr(entry, "meaning", None) or entry.__doc__) for name, entry in table.items()}


def _files(pattern: str) -> dict[str, str]:
    """Return the shipped YAML files by name, with the first sentence of the comment at their top."""
    return {path.stem: first_sentence(_comment(path)) for path in sorted(SHIPPED.glob(pattern))}


def _comment(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    first = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return "\n".join(line.removeprefix("#") for line in lines[:first])


def _methods() -> dict[str, str]:
    from experiments.methods.tables import AVERAGES, LOSS_TERMS, TUNINGS

    return described({**TUNINGS, **LOSS_TERMS, **AVERAGES})


def _sources() -> dict[str, str]:
    from experiments.data.sources import SOURCES

    return described(SOURCES)


def _graders() -> dict[str, str]:
    from experiments.data.graders import GRADERS

    return described(GRADERS)


def _suites() -> dict[str, str]:
    from experiments.evaluation.suites import SUITES

    return described(SUITES)


def _kept_tasks() -> dict[str, str]:
    from experiments.evaluation.kept_tasks.tasks import KEPT_TASKS

    return described(KEPT_TASKS)


def _interpolations() -> dict[str, str]:
    from ctrl.interpolation import INTERPOLATIONS

    return described(INTERPOLATIONS)


def _structures() -> dict[str, str]:
    """Read the docstring of ControlConfig, which has a phrase on each structure: there is no table of them."""
    from ctrl.config import ControlConfig, Structure

    [field] = re.findall(r"(?s)structure: (.*?)\n\s*\w+: ", str(ControlConfig.__doc__))
    phrases = dict(re.findall(r"`(\w+)`\s+([^`]+)", field))
    return {name: first_sentence(phrases[name]).rstrip(",. ") for name in get_args(Structure)}


def _divergences() -> dict[str, str]:
    from ctrl.divergence import DIVERGENCES

    return described(DIVERGENCES)


def _schedules() -> dict[str, str]:
    from experiments.training.schedules import SCHEDULES

    return described(SCHEDULES)


def _figures() -> dict[str, str]:
    from experiments.scorecard.figures import FIGURES

    return described(FIGURES)


KINDS = {  # what there is -> where it is written
    "configs": "control-llm run NAME",
    "studies": "control-llm study NAME",
    "methods": "arms: [{method: NAME}], or its parts train, loss, average",
    "sources": "data: {new: {source: NAME}}",
    "graders": "data: {new: {source: file, grader: NAME}}, or measure --grader NAME",
    "suites": "evaluation: {suites: [NAME]}, or measure --suites NAME",
    "tasks": "evaluation: {kept_tasks: [NAME]}, or measure --kept-tasks NAME",
    "structures": "control: {structure: NAME}",
    "interpolations": "control: {interpolation: NAME}",
    "divergences": "control: {divergence: NAME}",
    "schedules": "training: {schedule: NAME}",
    "figures": "in reports; in a study: objectives: [{figure: NAME}]; or measure --gate 'NAME >= 1'",
}
FILES = {"configs": "*.yaml", "studies": "studies/*.yaml"}
TABLES: dict[str, Callable[[], dict[str, str]]] = {
    "methods": _methods,
    "sources": _sources,
    "graders": _graders,
    "suites": _suites,
    "tasks": _kept_tasks,
    "structures": _structures,
    "interpolations": _interpolations,
    "divergences": _divergences,
    "schedules": _schedules,
    "figures": _figures,
}
