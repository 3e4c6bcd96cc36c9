"""The commands `runs`, `show` and `watch`: list runs, studies and measurements, show one, and follow one."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.cli.console import Commands, add_root, show, show_rows
from experiments.common.commands import command
from experiments.common.errors import DamagedError
from experiments.common.paths import default_root, short_path

UNITS = {"study": "trials", "run": "arms", "soften": "points"}  # what is counted; else models
HEAD = ("folder", "status", "done", "best gain", "retention", "of arm", "age")


def add(commands: Commands) -> None:
    runs = commands.add_parser("runs", help="list runs, studies and measurements with their status and best result")
    runs.add_argument("--trials", action="store_true", help="list the runs of studies' trials too")
    runs.set_defaults(command=runs_command)
    one = commands.add_parser("show", help="show a run, study or measurement: config, results, report, next command")
    one.add_argument("run", metavar="RUN", help="a folder, a name, or the beginning of one")
    one.set_defaults(command=show_command)
    live = commands.add_parser("watch", help="follow a run or a study until it ends, whoever started it")
    live.add_argument("run", metavar="RUN", help="a folder, a name, or the beginning of one")
    live.add_argument("--every", type=float, default=2.0, metavar="SECONDS", help="between two looks (default: 2)")
    live.set_defaults(command=watch_command)
    for parser in (runs, one, live):
        add_root(parser)


def runs_command(args: argparse.Namespace) -> int:
    from experiments.desk.overview import age, arm_text, figure, gain, read_all

    root = args.root or default_root()
    rows = []
    for one in read_all(root, args.trials):
        done = f"{one.done}/{'?' if one.total is None else one.total} {UNITS.get(one.kind, 'models')}"
        best = one.best or {"scorecard": {}}
        nats = "" if "gain" in best["scorecard"] else " nats"
        figures = [_number(gain(best), "+.2f", nats), _number(figure(best, "retention"), ".2f")]
        rows.append(
            [short_path(one.folder), one.status, done, *figures, arm_text(one.best) or one.remark, age(one.updated)]
        )
    if rows:
        show_rows(HEAD, rows)
    else:
        show(f"nothing was run below {short_path(root)} yet: {command('run', 'quickstart')}")
    return 0


def show_command(args: argparse.Namespace) -> int:
    from experiments.common.result_folders import MEASUREMENT, find

    root = args.root or default_root()
    folder = find(args.run, root)
    if (folder / "study.yaml").is_file():
        _show_study(folder)
        return 0
    try:
        if (folder / MEASUREMENT).is_file():
            _show_measurement(folder)
        else:
            _show_run(folder)
    except (AttributeError, LookupError, TypeError) as error:
        raise DamagedError(
            f"{folder}: config.yaml or a result is not as the bench wrote it ({type(error).__name__}: {error}): bring "
            "the folder back, or start its config again"
        ) from error
    return 0


def watch_command(args: argparse.Namespace) -> int:
    from experiments.desk.watch import watch

    watch(args.run, args.root, args.every)
    return 0


def _show_run(folder: Path) -> None:
    from experiments.common.files import read_note
    from experiments.desk.overview import age, own_config, read_run
    from experiments.reporting.tables import format_table
    from experiments.runs.result_file import read_result

    one, config = read_run(folder), own_config(folder)
    if config["precision"] == "auto" and (known := read_note(folder / "base" / "timing.json").get("precision")):
        config = {**config, "precision": f"auto ({known})"}
    show(f"{folder.name}: {one.status}, {one.done} of {one.total} arms, last change {age(one.updated)} ago\n")
    for title, text in config_lines(config).items():
        show(f"{title:<11} {text}")
    made = [folder / "arms" / f"{arm['name']}-{rate:g}" for arm in config["arms"] for rate in arm["learning_rates"]]
    made += sorted(path.parent for path in folder.glob("posthoc/*/result.json"))
    files = [path / "result.json" for path in made]
    results = [read_result(file, own=True) for file in files if file.is_file()]
    if results:
        print()
        show(
            format_table([replace(one, arm=f"{one.arm} {one.operation}") if one.operation else one for one in results])
        )
    for file in (file for file in files if not file.is_file()):
        show(f"{file.parent.name}: no result yet")
    report, root = folder / "report.html", folder.parent.parent
    show(f"\nreport:  {short_path(report) if report.is_file() else 'not written yet'}")
    if one.status != "finished":
        options: list[str | Path] = [] if root.resolve() == default_root().resolve() else ["--root", root]
        show(f"go on:   {command('run', folder / 'config.yaml', *options)}")


def _show_measurement(folder: Path) -> None:
    from experiments.common.files import read_json
    from experiments.desk.overview import MEASUREMENT, age, read_measurement

    one, config = read_measurement(folder), read_json(folder / MEASUREMENT)
    done = f"{one.done} of {one.total} {UNITS.get(one.kind, 'models')}"
    show(f"{folder.name}: {one.kind}, {one.status}, {done}, last change {age(one.updated)} ago\n")
    base = config["base_model"] or "the model at the start of the training"
    show(f"base model  {base}, precision {config['precision']}, seed {config['seed']}")
    show(f"new task    {config['new'] or 'none'}\nsuites      {', '.join(config['evaluation']['suites'])}")
    text, report = folder / "report.txt", folder / "report.html"
    if text.is_file():
        show(f"\n{text.read_text(encoding='utf-8').strip()}")
    if one.kind != "callback":
        show(f"\nreport:  {short_path(report) if report.is_file() else 'not written yet'}")
        if one.status != "finished":
            show(f"go on:   give the command {one.kind} once more, with the same options")


def config_lines(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the config of a run in a few lines: title -> text."""
    data, training, evaluation = config["data"], config["training"], config["evaluation"]
    rows = training["batch_size"] * training.get("gradient_accumulation", 1)
    when = f"every {evaluation['every']} steps" if evaluation["every"] else "at the end"
    return {
        "base model": f"{config['base_model']}, precision {config['precision']}, seed {config['seed']}",
        "new task": _sources(data["new"]) + _replay(data, config["arms"]),
        "training": f"{training['steps']} steps of {rows} rows",
        "evaluation": f"{when}: {', '.join(evaluation['suites'])}",
    }


def _replay(data: Mapping[str, Any], arms: Iterable[Mapping[str, Any]]) -> str:
    """Return what is replayed and its share, from the least to the most of the arms; empty if none replays."""
    own = (arm.get("replay") for arm in arms)
    shares = sorted((data.get("replay") or 0.0) if one is None else one for one in own)
    ends = dict.fromkeys(f"{share:.0%}" for share in (shares[0], shares[-1]))
    return f", {' to '.join(ends)} replay of {_sources(data['old'])}" if any(shares) else ""


def _sources(sources: Any) -> str:
    """Write each source with its name or path: `reasoning_gym chain_sum`."""
    names = [one.get("path") or one.get("name") for one in sources]
    return " + ".join(f"{one['source']} {name or ''}".strip() for one, name in zip(sources, names, strict=True))


def _show_study(folder: Path) -> None:
    from experiments.studies.queue import Store
    from experiments.studies.report.table import status_text
    from experiments.studies.storage import command_line, noted_storage, storage_url

    root = folder.parent.parent
    store = Store(storage_url(root, noted_storage(root, folder.name)), name=folder.name)
    if store.config.question:
        show(f"{store.config.question}\n")
    show(status_text(store, root))
    report = folder / "report.html"
    missing = f"not written yet: {command_line(store, root, 'report', folder.name)}"
    show(f"\nreport:  {short_path(report) if report.is_file() else missing}")


def _number(value: float | None, places: str, unit: str = "") -> str:
    return "" if value is None else format(value, places) + unit
