"""The command `preview`: what a config trains on, before a run."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from experiments.cli.console import Commands, quiet
from experiments.cli.run import overrides


def add(commands: Commands) -> None:
    one = commands.add_parser("preview", help="show what a config trains on: shapes, and an example with its loss mask")
    one.add_argument("config", type=Path, help="a YAML file, or the name of a shipped one: quickstart")
    one.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change one field: data.length=64")
    one.set_defaults(command=preview_command)


def preview_command(args: argparse.Namespace) -> int:
    from experiments.config import load_config
    from experiments.runs.preview import preview

    quiet()
    found = preview(load_config(args.config, overrides(args.set)))
    if not sys.stdout.isatty():
        print(found)
        return 0
    from rich.console import Console
    from rich.text import Text

    from experiments.runs.preview import pieces

    console = Console(highlight=False)
    for source in found.sources:
        console.print(Text(source.name, "bold"), *(Text(f"  {fact}", "dim") for fact in source.facts), sep="\n")
        for row in source.rows:
            console.print(
                Text.assemble(*((text, "black on green" if learned else "") for text, learned in pieces(row)))
            )
        console.print()
    return 0
