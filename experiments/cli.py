"""The command line: `python -m experiments.cli run CONFIG`, `ui`. Exit code 0: all went well, 1: an arm or the job
failed, 2: wrong input, 130: stopped with Ctrl-C."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import warnings
from pathlib import Path

import yaml


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    quiet()
    # Imported late: --help answers at once, and what these modules may raise is caught below.
    from ctrl import CheckpointError
    from ctrl import ConfigError as ControlError
    from experiments.config import ConfigError
    from experiments.models import ModelError
    from experiments.run import RunError
    from experiments.tracking import TrackingError

    try:
        return int(args.command(args))
    except (ConfigError, ControlError) as error:
        return _stop(2, str(error))
    except (ModelError, RunError, CheckpointError, TrackingError) as error:
        return _stop(1, str(error))
    except KeyboardInterrupt:
        return _stop(130, "stopped; the same command continues where this one stopped")


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m experiments.cli", description="Train, measure and compare.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="run an experiment, or continue it")
    run.add_argument("config", type=Path, help="a YAML file, or the name of a shipped one: quickstart")
    run.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change one field: training.steps=20"
    )
    run.add_argument("--fresh", action="store_true", help="drop what an earlier run of this config left")
    run.add_argument("--root", type=Path, help="where results go (default: mlruns)")
    run.set_defaults(command=run_command)
    ui = commands.add_parser("ui", help="open the MLflow UI on the store")
    ui.add_argument("--root", type=Path)
    ui.set_defaults(command=ui_command)
    sync = commands.add_parser("sync", help="send what a store missed from the journals of runs")
    sync.add_argument("folders", nargs="+", type=Path, metavar="RUN_FOLDER", help="as mlruns/runs/NAME")
    sync.add_argument("--root", type=Path, help="where the local store is (default: mlruns)")
    sync.set_defaults(command=sync_command)
    return top


def run_command(args: argparse.Namespace) -> int:
    from experiments.config import load_config
    from experiments.report import format_table
    from experiments.run import run_experiment

    outcome = run_experiment(load_config(args.config, overrides(args.set)), args.root, args.fresh, _say)
    print("\n" + format_table(outcome.results))
    for result in outcome.failed:
        print(f"failed: {result.label}: {result.reason}", file=sys.stderr)
    print(f"\nreport:    {outcome.report}\nMLflow UI: {outcome.ui_command}")
    return 1 if outcome.failed else 0


def ui_command(args: argparse.Namespace) -> int:
    from experiments.run import default_root
    from experiments.tracking import Tracker

    command = Tracker(args.root or default_root(), "Default").ui_command()
    _say(command)
    return subprocess.run(command, shell=True, check=False).returncode  # our own command, quoted by Tracker


def sync_command(args: argparse.Namespace) -> int:
    from experiments.run import default_root
    from experiments.tracking import sync

    said = sync(args.folders, args.root or default_root())
    for path, what in said.items():
        print(f"{path.name}: {what}")
    return 1 if any(what.startswith("not sent") for what in said.values()) else 0


def overrides(pairs: list[str]) -> dict[str, object]:
    """`training.steps=20` -> {"training.steps": 20}; values are read as YAML."""
    from experiments.config import ConfigError

    values = {}
    for pair in pairs:
        key, found, value = pair.partition("=")
        if not found:
            raise ConfigError(f"--set takes KEY=VALUE, but got {pair!r}: for example --set training.steps=20")
        values[key] = yaml.safe_load(value)
    return values


def _say(text: str) -> None:
    from tqdm import tqdm

    tqdm.write(text)
    sys.stdout.flush()


def _stop(code: int, message: str) -> int:
    print(f"error: {message}" if code != 130 else message, file=sys.stderr)
    return code


def quiet() -> None:
    """Progress bars stay; the libraries' own chatter about what is meant to be so goes."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=FutureWarning)
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


if __name__ == "__main__":
    sys.exit(main())
