"""The command line: `python -m experiments.cli COMMAND`; `--help` lists the commands.

Exit code 0: all went well, 1: an arm, the job or the gate failed, 2: wrong input, 130: stopped with Ctrl-C."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

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
    from experiments.studies.config import StudyError
    from experiments.tracking.tracking import TrackingError

    try:
        return int(args.command(args))
    except (ConfigError, ControlError) as error:
        return _stop(2, str(error))
    except (ModelError, RunError, CheckpointError, TrackingError, StudyError) as error:
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
    after = commands.add_parser("posthoc", help="change the trained weights of a finished arm, and measure again")
    after.add_argument("run", type=Path, help="the run's folder: mlruns/runs/NAME-DIGEST")
    after.add_argument("--arm", required=True)
    after.add_argument("--lr", type=float, required=True)
    after.add_argument("--op", required=True, help="wise, merge or task_vectors")
    after.add_argument("--alphas", type=float, nargs="+", help="shares of the trained weights, one result each")
    after.add_argument(
        "--with", type=Path, nargs="+", default=[], dest="others", metavar="ARM_FOLDER", help="task_vectors: the others"
    )
    after.set_defaults(command=posthoc_command)
    compare = commands.add_parser("compare", help="any runs side by side, paired on their common items")
    compare.add_argument(
        "runs", nargs="+", metavar="RUN", help="run folder, folder:arm-lr, study export, lm_eval samples"
    )
    compare.add_argument("--base", help="a RUN measured before training, for runs that have no base of their own")
    compare.add_argument("--reference", help="name of the run that the others are compared with (default: the first)")
    compare.add_argument("--out", type=Path, help="folder for compare.md, .png, .csv (a name ending in .html: a page)")
    compare.add_argument("--draws", type=int, default=10_000, help="resamples of the bootstrap (default: %(default)s)")
    compare.set_defaults(command=compare_command)
    gate = commands.add_parser("gate", help="exit with 0 only if forgetting is inside the margin")
    gate.add_argument("run", metavar="RUN")
    gate.add_argument(
        "--margin", type=float, default=0.01, help="kept accuracy that may be lost (default: %(default)s)"
    )
    gate.add_argument("--arm", help="one arm alone: arm-lr (default: all)")
    gate.add_argument("--base", help="a RUN measured before training, where the run has no base of its own")
    gate.set_defaults(command=gate_command)
    ui = commands.add_parser("ui", help="open the MLflow UI on the store")
    ui.add_argument("--root", type=Path)
    ui.set_defaults(command=ui_command)
    study = commands.add_parser("study", help="run a study of many trials, continue it, or join it")
    study.add_argument("config", type=Path, help="a YAML file, or the name of a shipped one: table5")
    study.add_argument("--workers", type=int, default=1, help="processes on this machine (default: 1)")
    study.add_argument("--profile", help="one of the study's profiles: gpu")
    study.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)  # one of --workers
    _places(study).set_defaults(command=study_command)
    resume = commands.add_parser("resume", help="go on with a study by its name, without its YAML")
    resume.add_argument("study")
    resume.add_argument("--workers", type=int, default=1)
    _places(resume).set_defaults(command=resume_command)
    status = commands.add_parser("status", help="how far a study is")
    status.add_argument("study")
    _places(status).set_defaults(command=status_command)
    add = commands.add_parser("add-trials", help="raise a study's budget")
    add.add_argument("study")
    add.add_argument("count", type=int)
    _places(add).set_defaults(command=add_trials_command)
    export = commands.add_parser("export", help="all trials with their scorecards, as CSV, Parquet or JSON")
    export.add_argument("study")
    export.add_argument("file", type=Path, help="its ending tells the format: .csv, .parquet, .json")
    _places(export).set_defaults(command=export_command)
    report = commands.add_parser("report", help="write a study's report")
    report.add_argument("study")
    report.add_argument("--out", type=Path, help="a folder (default: the study's own)")
    _places(report).set_defaults(command=report_command)

    sync = commands.add_parser("sync", help="send what a store missed from the journals of runs")
    sync.add_argument("folders", nargs="+", type=Path, metavar="RUN_FOLDER", help="as mlruns/runs/NAME")
    sync.add_argument("--root", type=Path, help="where the local store is (default: mlruns)")
    sync.set_defaults(command=sync_command)
    return top


def _places(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
    command.add_argument("--root", type=Path, help="where results go (default: mlruns)")
    command.add_argument("--storage", help="URL of the database of trials (default: optuna.db among the results)")
    return command


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


def posthoc_command(args: argparse.Namespace) -> int:
    from experiments.posthoc import posthoc
    from experiments.report import format_table

    results = posthoc(args.run, args.arm, args.lr, args.op, args.alphas, args.others, _say)
    print("\n" + format_table(results))
    return 0


def compare_command(args: argparse.Namespace) -> int:
    from experiments.comparison.compare import compare
    from experiments.comparison.inputs import CompareError, read_entries
    from experiments.comparison.report import format_comparison, write_comparison

    try:
        comparison = compare(read_entries(args.runs, args.base), args.reference, args.draws)
    except CompareError as error:
        return _stop(2, str(error))
    print(format_comparison(comparison))
    if args.out:
        page = args.out.suffix == ".html"
        print(f"\nwritten: {write_comparison(comparison, args.out.parent if page else args.out, page)}")
    return 0


def gate_command(args: argparse.Namespace) -> int:
    from experiments.comparison.compare import gate
    from experiments.comparison.inputs import CompareError, read_entries

    try:
        entries = read_entries([f"{args.run}:{args.arm}" if args.arm else args.run], args.base)
        verdicts = [gate(entry, args.margin) for entry in entries]
    except CompareError as error:
        return _stop(2, str(error))
    print("\n".join(line for _, line in verdicts))
    return 0 if all(passed for passed, _ in verdicts) else 1


def ui_command(args: argparse.Namespace) -> int:
    from experiments.run import default_root
    from experiments.tracking.tracking import Tracker

    command = Tracker(args.root or default_root(), "Default").ui_command()
    _say(command)
    return subprocess.run(command, shell=True, check=False).returncode  # our own command, quoted by Tracker


def study_command(args: argparse.Namespace) -> int:
    from experiments.run import default_root
    from experiments.studies.config import load_study
    from experiments.studies.launch import run_study, storage_url, work
    from experiments.tracking.machine import sigterm_raises

    config, root = load_study(args.config, args.profile), args.root or default_root()
    if args.worker:
        from experiments.studies.engine import Store

        with sigterm_raises():
            work(Store(storage_url(root, args.storage), config), root.resolve(), _say)
        return 0
    run_study(config, root, args.workers, args.storage, _say)
    print(f"\nreport: python -m experiments.cli report {config.name}")
    return 0


def resume_command(args: argparse.Namespace) -> int:
    from experiments.studies.launch import run_study

    store = _store(args)
    run_study(store.config, args.root, args.workers, store.url, _say)
    return 0


def status_command(args: argparse.Namespace) -> int:
    from experiments.studies.table import status_text

    print(status_text(_store(args)))
    return 0


def add_trials_command(args: argparse.Namespace) -> int:
    print(f"the budget is {_store(args).add_trials(args.count)} trials; `resume {args.study}` runs them")
    return 0


def export_command(args: argparse.Namespace) -> int:
    from experiments.studies.table import export

    print(f"{export(_store(args), args.file)} trials written to {args.file}")
    return 0


def report_command(args: argparse.Namespace) -> int:
    from experiments.run import default_root
    from experiments.studies.report import write_study_report

    root = (args.root or default_root()).resolve()
    store = _store(args)
    print(write_study_report(store, root, args.out or root / "studies" / store.config.name))
    return 0


def _store(args: argparse.Namespace) -> Any:
    """The study of that name, which must exist."""
    from experiments.run import default_root
    from experiments.studies.engine import Store
    from experiments.studies.launch import storage_url

    return Store(storage_url(args.root or default_root(), args.storage), name=args.study)


def sync_command(args: argparse.Namespace) -> int:
    from experiments.run import default_root
    from experiments.tracking.tracking import sync

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
