"""The command line: `python -m experiments.cli COMMAND`; `--help` lists the commands.

Exit code 0: all went well, 1: an arm, the job or the gate failed, 2: wrong input, 130: stopped with Ctrl-C.
A study that ended answers 0 with failed trials too, which are among its results; one that stopped answers 1."""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import yaml

from experiments.cli import compare as comparison_commands
from experiments.cli import study as study_commands
from experiments.cli.console import add_root, quiet, say, stop
from experiments.common.yaml_values import load_yaml


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    quiet()
    # Imported late: --help answers at once, and what these modules may raise is caught below.
    from ctrl import CheckpointError
    from ctrl import ConfigError as ControlError
    from experiments.common.errors import ConfigError
    from experiments.comparison.inputs import CompareError
    from experiments.models.base import ModelError
    from experiments.runs.run import RunError
    from experiments.studies.config import StudyError
    from experiments.tracking.store import TrackingError

    try:
        return int(args.command(args))
    except (ConfigError, ControlError, CompareError) as error:
        return stop(2, str(error))
    except (ModelError, RunError, CheckpointError, TrackingError, StudyError) as error:
        return stop(1, str(error))
    except OSError as error:  # a file that may not be written, a full disk: its text names the path
        return stop(1, str(error))
    except Exception as error:
        from experiments.studies.locks import storage_fault

        if not (fault := storage_fault(error)):
            raise
        return stop(1, f"the database failed: {fault}; nothing recorded is lost, the same command goes on")
    except KeyboardInterrupt:
        return stop(130, "stopped; the same command continues where this one stopped")


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m experiments.cli", description="Train, measure and compare.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="run an experiment, or continue it")
    run.add_argument("config", type=Path, help="a YAML file, or the name of a shipped one: quickstart")
    run.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change one field: training.steps=20"
    )
    run.add_argument("--fresh", action="store_true", help="drop what an earlier run of this config left")
    run.set_defaults(command=run_command)
    after = commands.add_parser("posthoc", help="change the trained weights of a finished arm, and measure again")
    after.add_argument("run", type=Path, help="the run's folder: mlruns/runs/NAME-DIGEST")
    after.add_argument("--arm", required=True)
    after.add_argument("--lr", type=float, required=True)
    after.add_argument("--op", required=True, help="wise, merge, dial or task_vectors")
    after.add_argument("--alphas", type=float, nargs="+", help="shares of the trained weights, one result each")
    after.add_argument(
        "--with", type=Path, nargs="+", default=[], dest="others", metavar="ARM_FOLDER", help="task_vectors: the others"
    )
    after.set_defaults(command=posthoc_command)
    comparison_commands.add(commands)
    study_commands.add(commands)
    ui = commands.add_parser("ui", help="open the MLflow UI on the store")
    ui.set_defaults(command=ui_command)
    sync = commands.add_parser("sync", help="send what a store missed from the journals of runs")
    sync.add_argument("folders", nargs="+", type=Path, metavar="RUN_FOLDER", help="as mlruns/runs/NAME")
    sync.set_defaults(command=sync_command)
    for command in (run, ui, sync):
        add_root(command)
    return top


def run_command(args: argparse.Namespace) -> int:
    from experiments.config import load_config
    from experiments.reporting.tables import format_table
    from experiments.runs.run import run_experiment
    from experiments.training.processes import is_main_process

    outcome = run_experiment(load_config(args.config, overrides(args.set)), args.root, args.fresh, say)
    if not is_main_process():
        return 0  # the first process says what came of it; a code of ours would end it before it has
    print("\n" + format_table(outcome.results))
    for result in outcome.failed:
        print(f"failed: {result.label}: {result.reason}", file=sys.stderr)
    print(f"\nreport:    {outcome.report}\nMLflow UI: {outcome.ui_command}")
    return 1 if outcome.failed else 0


def posthoc_command(args: argparse.Namespace) -> int:
    from experiments.posthoc.run import posthoc
    from experiments.reporting.tables import format_table

    results = posthoc(args.run, args.arm, args.lr, args.op, args.alphas, args.others, say)
    print("\n" + format_table([replace(result, arm=f"{result.arm} {result.operation}") for result in results]))
    return 0


def ui_command(args: argparse.Namespace) -> int:
    from experiments.runs.run import default_root
    from experiments.tracking.tracker import Tracker

    command = Tracker(args.root or default_root(), "Default").ui_command()
    say(command)
    return subprocess.run(command, shell=True, check=False).returncode  # our own command, quoted by Tracker


def sync_command(args: argparse.Namespace) -> int:
    from experiments.runs.run import default_root
    from experiments.tracking.sync import sync

    said = sync(args.folders, args.root or default_root())
    for path, what in said.items():
        print(f"{path.name}: {what}")
    return 1 if any(what.startswith("not sent") for what in said.values()) else 0


def overrides(pairs: list[str]) -> dict[str, object]:
    """`training.steps=20` -> {"training.steps": 20}; values are read as YAML."""
    from experiments.common.errors import ConfigError

    values = {}
    for pair in pairs:
        key, found, value = pair.partition("=")
        if not found:
            raise ConfigError(f"--set takes KEY=VALUE, but got {pair!r}: for example --set training.steps=20")
        try:
            values[key] = load_yaml(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {pair}: {value!r} is not YAML; quote what is text") from error
    return values
