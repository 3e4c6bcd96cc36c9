"""The commands of runs: `run`, `posthoc`, `export-model` and `sync`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from experiments.cli.console import Commands, add_root, folder, quiet, say, show
from experiments.common.commands import command
from experiments.common.errors import ConfigError
from experiments.common.paths import absolute, default_root, short_path
from experiments.records import arm_and_rate

DEEP = 5  # folders from ROOT/runs/NAME/arms/ARM up to ROOT


def add(commands: Commands) -> None:
    run = commands.add_parser("run", help="run an experiment, or continue it")
    run.add_argument("config", type=Path, help="a YAML file, or the name of a shipped one: quickstart")
    run.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change one field: training.steps=20"
    )
    run.add_argument("--fresh", action="store_true", help="delete what an earlier run of this config left")
    run.add_argument("--force", action="store_true", help="start it even if it does not fit into memory")
    run.set_defaults(command=run_command)
    after = commands.add_parser("posthoc", help="change the trained weights of a finished arm, and measure again")
    after.add_argument("run", type=Path, help="the run's folder: mlruns/runs/NAME-DIGEST")
    after.add_argument("--arm", required=True, help="the arm with its learning rate: control-0.0003")
    after.add_argument("--lr", type=float, help="its learning rate, if --arm is the name alone")
    after.add_argument("--op", required=True, help="wise, lines, dial, dial_depth, merge, task_vectors or ensemble")
    after.add_argument("--alphas", type=float, nargs="+", help="shares of the trained weights, one result each")
    after.add_argument(
        "--with",
        type=Path,
        nargs="+",
        default=[],
        dest="others",
        metavar="ARM_FOLDER",
        help="task_vectors, ensemble: the others",
    )
    after.add_argument(
        "--choose", action="store_true", help="choose one of the alphas by half of the items, and report the other half"
    )
    after.set_defaults(command=posthoc_command)
    out = commands.add_parser("export-model", help="write the model of a finished arm as a folder that others can load")
    out.add_argument("run", type=Path, help="the run's folder: mlruns/runs/NAME-DIGEST")
    out.add_argument("--arm", required=True, help="the arm with its learning rate: control-0.0003")
    out.add_argument("--to", type=folder, required=True, metavar="FOLDER", help="a new folder")
    out.add_argument(
        "--form", default="merged", choices=("merged", "trained"),
        help="a plain model, or as it was trained: an expansion or an adapter (default: %(default)s)",
    )  # fmt: skip
    out.add_argument(
        "--dtype",
        choices=("fp32", "bf16", "fp16"),
        help="of the weights (default: that of the base's files; trained: fp32)",
    )
    out.set_defaults(command=export_command)
    sync = commands.add_parser("sync", help="send what a store missed from the journals of runs")
    sync.add_argument("folders", nargs="+", type=Path, metavar="RUN_FOLDER", help="for example mlruns/runs/NAME")
    sync.set_defaults(command=sync_command)
    for one in (run, sync):
        add_root(one)


def run_command(args: argparse.Namespace) -> int:
    from experiments.config import load_config
    from experiments.reporting.tables import format_table
    from experiments.runs.run import run_experiment
    from experiments.training.launcher import is_main_process

    quiet()
    given = overrides(args.set)
    config = load_config(args.config, given)
    config.evaluation.check_settings(given)
    outcome = run_experiment(config, args.root, args.fresh, say, force=args.force)
    if not is_main_process():
        return 0  # the first process says what came of it; a code of ours would end it before it has
    print()
    show(format_table(outcome.results))
    for result in outcome.failed:
        show(f"failed: {result.label}: {result.reason}", sys.stderr)
    root = ["--root", args.root] if args.root else []
    show(f"\nreport:    {short_path(outcome.report)}\nMLflow UI: {command('ui', *root)}")
    return 1 if outcome.failed else 0


def posthoc_command(args: argparse.Namespace) -> int:
    from experiments.posthoc.choice import check_choosable, choose_alpha
    from experiments.posthoc.run import posthoc
    from experiments.reporting.tables import format_table

    quiet()
    if args.choose and len(args.alphas or ()) < 2:
        raise ConfigError("--choose needs two or more --alphas to choose from: --alphas 0.25 0.5 0.75 1")
    arm, rate = split_arm(args.arm) if args.lr is None else (args.arm, args.lr)
    if args.choose:
        check_choosable(args.run, arm, rate)
    results = posthoc(args.run, arm, rate, args.op, args.alphas, args.others, say)
    print()
    show(format_table([replace(result, arm=f"{result.arm} {result.operation}") for result in results]))
    if args.choose:
        show("\n" + choose_alpha(args.run, results, args.alphas).text())
    return 0


def export_command(args: argparse.Namespace) -> int:
    from experiments.posthoc.export import export, exported_text

    quiet()
    done = export(args.run, *split_arm(args.arm), args.to, args.form, args.dtype, say)
    show("\n".join(exported_text(done)))
    return 0


def split_arm(text: str) -> tuple[str, float]:
    """`control-0.0003` -> ("control", 0.0003). Raises ConfigError for a text without a learning rate."""
    if found := arm_and_rate(text):
        return found
    raise ConfigError(f"--arm {text!r} has no learning rate: write it at the end, for example {text}-0.0003")


def sync_command(args: argparse.Namespace) -> int:
    from experiments.tracking.sync import store_of, sync

    root = args.root or _root_of(args.folders)
    said = sync(args.folders, root)
    show(f"store: {store_of(root).shown}")
    for path, what in said.items():
        show(f"{path.name}: {what}")
    return 1 if any(what.startswith("not sent") for what in said.values()) else 0


def _root_of(folders: Sequence[Path]) -> Path:
    """Return the root with a store in which folders are: another root's would get runs that are not its own.

    Else the default root, for runs that were copied here. Raises ConfigError for folders of several roots.
    """
    near = [(folder, *folder.parents)[:DEEP] for folder in map(absolute, folders)]
    own = [next((place for place in places if (place / "mlflow.db").is_file()), None) for places in near]
    roots = sorted({root for root in own if root})
    if len(roots) > 1:
        raise ConfigError(f"the runs are of several roots, {', '.join(map(str, roots))}: sync them one by one")
    return roots[0] if roots else default_root()


def overrides(pairs: list[str]) -> dict[str, object]:
    """`training.steps=20` -> {"training.steps": 20}; values are read as YAML, keys once. Raises ConfigError."""
    import yaml

    from experiments.common.yaml_values import load_yaml
    from experiments.evaluation.flat_keys import replaces

    values: dict[str, object] = {}
    for pair in pairs:
        key, found, value = pair.partition("=")
        if not found:
            raise ConfigError(f"--set takes KEY=VALUE, but got {pair!r}: for example --set training.steps=20")
        # a list of suites leaves the settings that have flat keys
        flat = key != "evaluation.suites"
        if before := next((o for o in values if f"{o}.".startswith(f"{key}.") or (flat and replaces(key, o))), ""):
            raise ConfigError(f"--set {pair} replaces --set {before}: leave one out")
        if not value.strip():  # an unset variable of the shell is no default
            raise ConfigError(f"--set {pair} is empty: give a value, or null for none")
        try:
            values[key] = load_yaml(value)
            node = yaml.compose(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {pair}: {value!r} is not YAML; quote what is text ({error})") from error
        if cut := value[node.end_mark.index if node else 0 :].strip():
            raise ConfigError(f"--set {pair}: {cut!r} is a comment in YAML; put the text in quotes: '\"{value}\"'")
    return values
