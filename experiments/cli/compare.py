"""The commands `compare` and `gate`."""

from __future__ import annotations

import argparse
from pathlib import Path

from experiments.cli.console import Commands, folder_or_page, show

NEW = "tasks of lm_eval that were learned (patterns: 'gsm8k*'); the others are kept tasks"


def add(commands: Commands) -> None:
    compare = commands.add_parser("compare", help="compare runs, paired on their common items")
    compare.add_argument(
        "runs", nargs="+", metavar="RUN", help="run folder, folder:arm-lr, study export, lm_eval samples"
    )
    compare.add_argument("--base", help="a RUN measured before training, for runs without a base of their own")
    compare.add_argument("--new", nargs="+", default=[], metavar="TASK", help=NEW)
    compare.add_argument("--reference", help="name of the run to compare the others with (default: the first finished)")
    compare.add_argument(
        "--out", type=folder_or_page, help="folder for compare.md, .png, .csv (a name ending in .html: a page)"
    )
    compare.add_argument("--draws", type=int, default=10_000, help="resamples of the bootstrap (default: %(default)s)")
    compare.set_defaults(command=compare_command)
    gate = commands.add_parser("gate", help="exit with 0 only if forgetting is below the margin")
    gate.add_argument("run", metavar="RUN", help="run folder, folder of measure, or lm_eval samples")
    gate.add_argument(
        "--margin", type=float, default=0.01, help="kept accuracy that may be lost (default: %(default)s)"
    )
    gate.add_argument("--arm", help="one arm alone: control-0.0003 (default: all, and what posthoc made of them)")
    gate.add_argument("--base", help="a RUN measured before training, if the run has no base of its own")
    gate.add_argument("--new", nargs="+", default=[], metavar="TASK", help=NEW)
    gate.add_argument("--each-task", action="store_true", help="each kept task alone must be below the margin")
    gate.set_defaults(command=gate_command)


def compare_command(args: argparse.Namespace) -> int:
    from experiments.comparison.compare import compare
    from experiments.comparison.inputs import read_runs
    from experiments.comparison.report import format_comparison, write_comparison

    comparison = compare(read_runs(args.runs, args.base, args.new), args.reference, args.draws)
    show(format_comparison(comparison))
    if args.out:
        show(f"\nwritten: {write_comparison(comparison, args.out)}")
    else:
        print("\nas files, with a picture: --out FOLDER")
    return 0


def gate_command(args: argparse.Namespace) -> int:
    from experiments.comparison.configs import check_config
    from experiments.comparison.gate import by_task, gate
    from experiments.comparison.inputs import read_runs

    check_config(Path(args.run))
    runs = read_runs([f"{args.run}:{args.arm}" if args.arm else args.run], args.base, args.new)
    parts = [part for run in runs for part in ([run, *by_task(run)] if args.each_task else [run])]
    verdicts = [gate(part, args.margin) for part in parts]
    show("\n".join(line for _, line in verdicts))
    return 0 if all(passed for passed, _ in verdicts) else 1
