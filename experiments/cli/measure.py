"""The command `measure`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from experiments.cli.console import Commands, add_root, folder, quiet, say, show
from experiments.cli.run import overrides
from experiments.common.paths import short_path

GATE_FAILED = 3


def add(commands: Commands) -> None:
    one = commands.add_parser("measure", help="measure what any model forgot of its base, wherever it was trained")
    one.add_argument("--base", required=True, help="the model before training: a Hugging Face name or a folder")
    one.add_argument(
        "--model", action="append", required=True, metavar="[NAME=]MODEL", dest="models",
        help="a Hugging Face name; a folder of a model, a PEFT adapter or ctrl.save; a published Control LLM "
        "checkpoint; a folder with checkpoint-STEP folders; models:/... of MLflow; http://HOST:PORT/v1#MODEL on a "
        "server that speaks the OpenAI protocol (its key in OPENAI_API_KEY). Several: repeat the option",
    )  # fmt: skip
    one.add_argument("--new", type=Path, metavar="FILE", help="questions or texts of the new task, for the gain")
    one.add_argument("--suites", nargs="+", metavar="SUITE", help="default: kept drift text instructions alignment")
    one.add_argument(
        "--gate", action="append", default=[], metavar="CONDITION",
        help='"retention >= .98": exit with 3 if the bound of its interval does not hold; repeat for more',
    )  # fmt: skip
    one.add_argument("--out", type=folder, help="folder of the results (default: ROOT/runs/measure-BASE-DIGEST)")
    add_settings(one)
    one.set_defaults(command=measure_command)
    add_root(one)


def add_settings(one: argparse.ArgumentParser) -> None:
    """Add the options that `measure` and `soften` share."""
    one.add_argument(
        "--grader", metavar="GRADER", help="decides whether replies to --new are right: exact, contains, math, ..., "
        "FILE:FUNCTION, or '{numeric: .01}'; `control-llm list graders` names them",
    )  # fmt: skip
    one.add_argument(
        "--kept", action="append", default=[], type=Path, metavar="FILE", dest="kept_files",
        help="questions of your own that count as a kept task, next to the others; repeat for more",
    )  # fmt: skip
    one.add_argument("--kept-tasks", nargs="+", metavar="TASK", help="kept tasks; `control-llm list` names them")
    one.add_argument(
        "--lm-eval", nargs="+", default=[], metavar="TASK", help="tasks of lm-evaluation-harness that count as kept; "
        "`lm_eval ls tasks` names them; settings: --set lm_eval.limit=100, lm_eval.fewshot, lm_eval.run_code",
    )  # fmt: skip
    one.add_argument("--precision", default="auto", choices=("auto", "bf16", "fp32"), help="default: what is faster")
    one.add_argument("--dtype", default="fp32", choices=("fp32", "bf16", "fp16"), help="of the weights (default: fp32)")
    one.add_argument(
        "--device-map", metavar="MAP", help="auto: spread a model over the devices; or one device, such as cuda:1"
    )
    one.add_argument(
        "--trust-remote-code", action="store_true", help="run the Python files that base and model bring along"
    )
    one.add_argument("--seed", type=int, default=0, help="of the items and of the bootstrap (default: %(default)s)")
    one.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of a suite: kept.items=50"
    )
    one.add_argument(
        "--allow-other-base", action="store_true", help="load what was trained on another base than --base"
    )


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """Return what is asked and how weights are loaded, as `measure` and `soften` take it."""
    return {
        "kept_tasks": args.kept_tasks,
        "kept_files": args.kept_files,
        "grader": overrides([f"grader={args.grader}"])["grader"] if args.grader else None,
        "lm_eval": [name for word in args.lm_eval for name in word.split(",") if name],
        "dtype": args.dtype,
        "device_map": args.device_map,
        "trust_remote_code": args.trust_remote_code,
    }


def measure_command(args: argparse.Namespace) -> int:
    from experiments.measure.run import measure

    quiet()
    found = measure(
        args.base, args.models, args.new, args.suites, gate=args.gate, out=args.out, root=args.root, seed=args.seed,
        precision=args.precision, changes=overrides(args.set), allow_other_base=args.allow_other_base, say=say,
        **settings(args),
    )  # fmt: skip
    print()
    show(found.report.text())
    show(f"\nreport: {short_path(found.report.page)}\nfigures: {short_path(found.folder / 'figures.json')}")
    verdicts = found.verdicts()
    if verdicts:
        print()
        show("\n".join(line for _, line in verdicts))
    for name, why in found.failed.items():
        show(f"failed: {name}: {why}", sys.stderr)
    if not all(holds for holds, _ in found.judged()):
        return GATE_FAILED
    return 1 if found.failed else 0
