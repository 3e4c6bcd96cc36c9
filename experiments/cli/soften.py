"""The command `soften`."""

from __future__ import annotations

import argparse
from pathlib import Path

from experiments.cli.console import Commands, add_root, folder, quiet, say, show
from experiments.cli.measure import add_settings, settings
from experiments.cli.run import overrides
from experiments.common.errors import ConfigError
from experiments.common.paths import short_path

NONE_FITS = 3


def add(commands: Commands) -> None:
    one = commands.add_parser(
        "soften", help="go part of the way from a base to a model, where it forgets less; no training"
    )
    one.add_argument("--base", required=True, help="the model before training: a Hugging Face name or a folder")
    one.add_argument(
        "--model", action="append", required=True, metavar="[NAME=]MODEL", help="what was trained, as for `measure`"
    )
    one.add_argument("--to", type=folder, required=True, metavar="FOLDER", help="where the softened model is written")
    one.add_argument("--new", type=Path, metavar="FILE", help="questions or texts of the new task, for the gain")
    one.add_argument(
        "--alphas", nargs="+", type=float, default=None, metavar="ALPHA",
        help="points of the path, above 0 (the base) and up to 1 (the model, always measured) (default: .2 .4 .6 .8 1)",
    )  # fmt: skip
    one.add_argument(
        "--by", default="weights", choices=("weights", "depth"),
        help="alpha in all weights (WiSE-FT), or rising with depth (LiNeS) (default: %(default)s)",
    )  # fmt: skip
    one.add_argument(
        "--until", action="append", default=[], metavar="CONDITION",
        help='"retention >= .98": choose the highest gain of the points whose bound fulfils it; repeat for more',
    )  # fmt: skip
    one.add_argument("--suites", nargs="+", metavar="SUITE", help="default: new kept drift text")
    one.add_argument("--out", type=folder, help="folder of the measurements (default: ROOT/runs/soften-MODEL-DIGEST)")
    add_settings(one)
    one.set_defaults(command=soften_command)
    add_root(one)


def soften_command(args: argparse.Namespace) -> int:
    from experiments.soften.run import ALPHAS, soften

    if len(args.model) > 1:
        raise ConfigError(f"--model: one model is softened at a time, but got {', '.join(args.model)}")
    quiet()
    found = soften(
        args.base, args.model[0], args.to, args.new, args.alphas or ALPHAS, args.by, args.suites, args.until, args.out,
        args.root, args.precision, args.seed, overrides(args.set), args.allow_other_base, say, **settings(args),
    )  # fmt: skip
    print()
    show(found.report.text())
    print(f"\nreport: {short_path(found.report.page)}")
    if found.alpha is None:
        return NONE_FITS
    print(f"model:  {short_path(args.to)} (alpha {found.alpha:g})")
    return 0
