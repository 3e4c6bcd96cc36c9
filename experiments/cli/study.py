"""The commands of studies: `study`, `resume`, `status`, `add-trials`, `export` and `report`."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.cli.console import Commands, add_root, folder, quiet, say, show
from experiments.common.errors import ConfigError
from experiments.common.paths import default_root

if TYPE_CHECKING:
    from experiments.studies.queue import Store

NAME = "name of the study"
WORKERS = "processes on this machine (default: 1)"
REPORT = (".html", ".md", ".png", ".csv")  # no folder is meant by such a name
PAGES, YAML = ("report.md", "report.html", "table.csv"), "study.yaml"  # that a report writes, besides pictures
PICTURES = r"(forgetting|trajectories|pareto|ranks|importances|slice|progress|law|alignment)(-\d+)?\.png"
TRIALS = "trials.tar.xz"
MARK = "(?m)^Brackets: 95 % intervals over questions"  # of a study's report.md; a run's has other words


def add(commands: Commands) -> None:
    study = commands.add_parser("study", help="run a study of many trials, continue it, or join it")
    study.add_argument("config", type=Path, help="a YAML file, or the name of a shipped one: table5")
    _add_workers(study)
    study.add_argument("--profile", help="one of the study's profiles: gpu")
    study.add_argument(
        "--from",
        dest="known",
        type=Path,
        metavar="FOLDER",
        help="begin with the trials in FOLDER/trials.tar.xz, which `report --out` writes",
    )
    study.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)  # one of --workers
    study.set_defaults(command=study_command)
    resume = commands.add_parser("resume", help="continue a study by its name, without its YAML")
    resume.add_argument("study", help=NAME)
    resume.add_argument("--failed", action="store_true", help="run the failed trials again too, from their start")
    _add_workers(resume)
    resume.set_defaults(command=resume_command)
    status = commands.add_parser("status", help="print the state of a study: trials that run, failed and are best")
    status.add_argument("study", help=NAME)
    status.set_defaults(command=status_command)
    more = commands.add_parser("add-trials", help="raise a study's budget")
    more.add_argument("study", help=NAME)
    more.add_argument("count", type=int, help="trials to add")
    more.set_defaults(command=add_trials_command)
    export = commands.add_parser("export", help="write all trials with their scorecards as CSV, Parquet or JSON")
    export.add_argument("study", help=NAME)
    export.add_argument("file", type=Path, help="the format is that of its ending: .csv, .parquet, .json")
    export.set_defaults(command=export_command)
    report = commands.add_parser("report", help="write a study's report")
    report.add_argument("study", help=NAME)
    report.add_argument("--out", type=folder, help="a folder (default: the study's own)")
    report.set_defaults(command=report_command)
    for command in (study, resume, status, more, export, report):
        add_root(command)
        command.add_argument("--storage", help="URL of the database of trials (default: optuna.db in the root)")


def _add_workers(command: argparse.ArgumentParser) -> None:
    command.add_argument("--workers", type=int, help=WORKERS)
    command.add_argument("--devices", help="GPUs for the workers, by number: 0,2 or 0-3, or auto for all")
    command.add_argument("--per-device", type=int, help="workers on each GPU of --devices (default: 1)")


def _places(args: argparse.Namespace) -> list[str]:
    """Return the GPU of each worker; empty without --devices. Raises ConfigError and StudyError."""
    from experiments.studies.workers import worker_places

    if args.devices is None:
        if args.per_device is not None:
            raise ConfigError("--per-device has no effect without --devices: add --devices auto, or give --workers")
        return []
    if args.workers is not None:
        raise ConfigError("--workers and --devices both say how many workers run: give --devices and --per-device")
    return worker_places(args.devices, 1 if args.per_device is None else args.per_device)


def study_command(args: argparse.Namespace) -> int:
    from experiments.common.signals import sigterm_raises
    from experiments.studies.checks import check_inputs
    from experiments.studies.launch import check_start, run_study, work
    from experiments.studies.load import load_study
    from experiments.studies.storage import storage_url

    quiet()
    config, root, places = load_study(args.config, args.profile), args.root or default_root(), _places(args)
    workers = len(places) or (1 if args.workers is None else args.workers)
    if args.worker:
        from experiments.studies.queue import Store

        with sigterm_raises():
            work(Store(storage_url(root, args.storage), config), root.resolve(), say)
        return 0
    check_start(config, root, workers, args.storage)
    check_inputs(config, root, say)
    show(_end_text(run_study(config, root, workers, args.storage, say, args.known, places), root))
    return 0


def resume_command(args: argparse.Namespace) -> int:
    from experiments.studies.launch import run_study
    from experiments.studies.load import parse_study

    quiet()
    store, places = _store(args), _places(args)
    # checked by an earlier version, perhaps
    parse_study(store.config.to_dict(), source=f"study {args.study}", begun=True)
    workers = 1 if args.workers is None else args.workers
    if args.failed:
        from experiments.studies.again import queue_failed
        from experiments.studies.launch import check_start

        check_start(store.config, args.root or default_root(), workers, store.url)
        numbers = queue_failed(store, args.root or default_root())
        say(f"{args.study}: again from its start: trial {', '.join(map(str, numbers))}")
    done = run_study(store.config, args.root, workers, store.url, say, devices=places)
    show(_end_text(done, args.root or default_root()))
    return 0


def status_command(args: argparse.Namespace) -> int:
    from experiments.studies.report.table import status_text

    show(status_text(_store(args), args.root or default_root()))
    return 0


def add_trials_command(args: argparse.Namespace) -> int:
    from experiments.studies.storage import command_line, note_progress

    store, root = _store(args), args.root or default_root()
    count = store.add_trials(args.count)
    note_progress(store, root)
    show(f"the budget is {count} trials; to run them: {command_line(store, root, 'resume', args.study)}")
    return 0


def export_command(args: argparse.Namespace) -> int:
    from experiments.studies.report.table import export

    store = _store(args)
    show(f"{export(store, args.file)} trials written to {args.file}")
    return 0


def report_command(args: argparse.Namespace) -> int:
    from experiments.studies.fetch import fetch_runs
    from experiments.studies.report.write import write_study_report

    root = (args.root or default_root()).resolve()
    if args.out and args.out.suffix in REPORT:
        raise ConfigError(f"--out {args.out}: give a folder, which gets all files of the report")
    store = _store(args)
    if args.out:
        _check_out(store, args.out)
    fetch_runs(store.config, store.trials(), root, say)
    page = write_study_report(store, root, args.out or root / "studies" / store.config.name)
    show(str(page))
    if said := attach(store.config.name, root, page.parent):
        say(said)
    return 0


def _check_out(store: Store, folder: Path) -> None:
    """Raise ConfigError for a folder with files of a report's names that no report of this study has written."""
    from experiments.common.own_files import is_own
    from experiments.studies.storage import public_yaml

    own = folder / YAML
    same = own.is_file() and own.read_bytes() == public_yaml(store.config).encode()
    named = is_own(own, rf"(?m)^name: ['\"]?{re.escape(store.config.name)}['\"]?\s*$")  # its budget may be another now
    if same or (named and (folder / PAGES[0]).is_file() and is_own(folder / PAGES[0], MARK)):
        return
    pictures = sorted(path.name for path in folder.glob("*.png") if re.fullmatch(PICTURES, path.name))
    if others := [name for name in (*pictures, TRIALS, *PAGES, YAML) if (folder / name).is_file()]:
        raise ConfigError(
            f"--out {folder} has a {others[-1]} of its own, which the report would replace: name another folder"
        )


def _written(folder: Path) -> list[Path]:
    """Return the files of a report: its pages and table, and the pictures that they show. Others are nobody's here."""
    pictures = re.findall(r"\]\(([\w-]+\.png)\)", (folder / PAGES[0]).read_text(encoding="utf-8"))
    return [path for name in sorted({*PAGES, *pictures}) if (path := folder / name).is_file()]


def attach(name: str, root: Path, folder: Path) -> str:
    """Add a report's files to the study's MLflow run, in the folder `report`. Returns why that was not possible."""
    from experiments.common.errors import TrackingError
    from experiments.common.files import read_note
    from experiments.studies.storage import study_folder
    from experiments.tracking.store import last_line
    from experiments.tracking.tracker import Tracker

    run_id = read_note(study_folder(root, name) / "mlflow.json").get("run_id")
    if not run_id:
        return ""  # it ran on another machine
    try:
        client = Tracker(root, name).client
        for path in _written(folder):
            client.log_artifact(run_id, str(path), "report")
    except Exception as error:
        # the last line of ours is what to do; the first is the reason
        reason = str(error).partition("\n")[0] if isinstance(error, TrackingError) else last_line(error)
        return f"the report is complete, but MLflow did not accept its files: {reason}"
    return ""


def _end_text(store: Store, root: Path) -> str:
    """Return the end message of a study, with the commands that can follow."""
    from experiments.studies.storage import command_line

    config, budget = store.config, store.config.budget
    lines = ["", f"{config.name}: " + ("trials still run on another machine" if store.going_on() else "finished")]
    lines.append(f"report: {command_line(store, root, 'report', config.name)}")
    if budget.trials is not None and store.limit() != store.cells:
        lines.append(f"more trials: {command_line(store, root, 'add-trials', config.name, '10')}")
    elif budget.hours is not None:
        lines.append("more trials: raise budget.hours in its YAML, then `study` with that")
    return "\n".join(lines)


def _store(args: argparse.Namespace) -> Store:
    """Open the study of that name. Raises StudyError if there is none."""
    from experiments.studies.queue import Store
    from experiments.studies.storage import noted_storage, storage_url

    root = args.root or default_root()
    return Store(storage_url(root, args.storage or noted_storage(root, args.study)), name=args.study)
