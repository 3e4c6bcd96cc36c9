"""Read the progress and the best result of runs, studies and measurements from their files, without torch."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from experiments.common.errors import ConfigError, DamagedError
from experiments.common.files import read_json
from experiments.common.hashing import json_digest, same_file
from experiments.common.result_folders import MEASUREMENT, folders, measurements, trial_runs
from experiments.records import MEASURED
from experiments.runs.result_file import check_owner, result_values
from experiments.tracking.journal import PATTERN, Event, Journal
from experiments.tracking.machine import process_state
from experiments.tracking.run import flatten

GAINS = ("gain", "new_nll_drop")  # of `scorecard.figures`, which takes a second to import
ENDS = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "stopped"}  # status of a journal's end
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast
SHOWN = (*GAINS, "retention")
SEED = re.compile(r"(-seed\d+)?-[0-9a-f]{8}$")  # what follows the number of a trial in the name of its run
CHOSEN = "chosen.json"  # of `soften`
DEEP = 20_000  # characters: from 50,000 nested lists on it ends the process


@dataclass(frozen=True)
class Overview:
    """A run, a study or a measurement (`measure`, `soften`, `callback`).

    status: running, finished, failed, stopped, unknown (it runs on another machine, or left no sign), or unreadable.
    done, total: arms of a run, trials of a study, models; total is None if it is not known. best: result.json of the
    arm with the highest gain, and of those the highest retention; of a study one of its feasible trials, with several
    seeds the means over them; of `soften` the chosen point. updated: seconds since 1970. remark: why there is no best.
    """

    kind: str
    folder: Path
    status: str
    done: int
    total: int | None
    best: Mapping[str, Any] | None
    updated: float
    remark: str = ""


def read_all(root: Path, trials: bool = False) -> list[Overview]:
    """Return what was run below a root, the latest first. trials: the runs of studies' trials too."""
    studies, runs = folders(root)
    own = {run for study in studies for run in trial_runs(study, runs)}
    found = [_readable("study", study, partial(read_study, study, trial_runs(study, runs))) for study in studies]
    found += [_readable("run", run, partial(read_run, run)) for run in runs if trials or run not in own]
    found += [_readable("measure", one, partial(read_measurement, one)) for one in measurements(root)]
    return sorted(found, key=lambda one: one.updated, reverse=True)


def _readable(kind: str, folder: Path, read: Callable[[], Overview]) -> Overview:
    """Read a folder; one that is broken must not hide the others."""
    try:
        return read()
    except (ConfigError, OSError, KeyError, TypeError, ValueError):
        return Overview(kind, folder, "unreadable", 0, None, None, _updated(folder))


def read_run(folder: Path) -> Overview:
    """Raises ConfigError, KeyError, TypeError or ValueError if a file in the folder is broken."""
    results = [_own_values(path) for path in folder.glob("arms/*/result.json")]
    total = sum(len(arm["learning_rates"]) for arm in read_config(folder / "config.yaml")["arms"])
    whole = len(results) >= total and (folder / "report.html").is_file()
    failed = any(result["status"] == "failed" for result in results)
    status = ("failed" if failed else "finished") if whole else _process(folder.glob(PATTERN))
    return Overview("run", folder, status, len(results), total, best(results), _updated(folder))


def read_study(folder: Path, runs: Iterable[Path]) -> Overview:
    """runs: of its trials. Raises as `read_run`."""
    runs = list(runs)
    results = {run: [_own_values(path) for path in run.glob("arms/*/result.json")] for run in runs}
    progress = read_json(folder / "progress.json")
    counts, ended = progress.get("trials", {}), progress.get("ended", "")
    done = (
        sum(counts.get(state, 0) for state in ("complete", "pruned", "failed"))
        if progress
        else sum(map(len, results.values()))
    )
    owner = read_json(folder / "mlflow.json").get("owner")
    alive = process_state(owner) if owner else False
    if alive:
        status = "running"
    elif ended:
        status = "failed" if ended.startswith("stopped") else "finished"
    else:
        status = "unknown" if alive is None or not progress else "stopped"
    outside = {f"{folder.name}-{number:03d}" for number in progress.get("infeasible", ())}
    trials = _trials(folder, results, outside)
    remark = "no trial is feasible" if outside and not trials else ""
    return Overview("study", folder, status, done, progress.get("limit"), best(trials), _updated(folder, runs), remark)


def _trials(
    study: Path, results: Mapping[Path, Sequence[Mapping[str, Any]]], outside: Collection[str]
) -> list[Mapping[str, Any]]:
    """Return a result for each trial, whose figures are means over its seeds: one seed alone may be lucky.

    Trials of which a seed is missing have none yet. outside: names of trials that a constraint excludes.
    """
    seeds = len(read_config(study / "study.yaml").get("seeds") or [0])
    trials: dict[str, list[Mapping[str, Any]]] = {}
    for run, own in results.items():
        if (name := SEED.sub("", run.name)) not in outside:
            trials.setdefault(name, []).extend(own)
    return [_mean(own) for own in trials.values() if len(own) == seeds and all(r["status"] == "finished" for r in own)]


def _mean(results: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    if len(results) == 1:
        return results[0]
    shared = [name for name in SHOWN if all(figure(one, name) is not None for one in results)]
    card = {name: {"value": fmean(figure(one, name) or 0.0 for one in results)} for name in shared}
    return {**results[0], "scorecard": card}


def read_measurement(folder: Path) -> Overview:
    """Raises as `read_run`. A call that was stopped before its first model has no sign of what it is doing."""
    note, arms = read_json(folder / MEASUREMENT), folder / "arms"
    names = sorted({*note.get("arms", ()), *(path.name for path in arms.glob("*") if path.is_dir())})
    results = [_own_values(arms / name / "result.json") for name in names]
    missing = [name for name, result in zip(names, results, strict=True) if not result]
    command = note.get("command", "measure")
    whole = bool(names) and not missing and (command == "callback" or (folder / "report.html").is_file())
    journals = [path for name in missing or names for path in (arms / name).glob(PATTERN)]
    status = "finished" if whole else "unknown" if command == "callback" else _process(journals)
    done = len(names) - len(missing)
    return Overview(command, folder, status, done, len(names), _shown(folder, command, results), _updated(folder))


def _own_values(file: Path) -> dict[str, Any]:
    """Return the plain values of a result. Raises DamagedError if it was changed, or is of another run."""
    values = result_values(file)
    check_owner(file, values)
    return values


def chosen_alpha(folder: Path) -> float:
    """Return the point that `soften` chose; 0, the base, if it chose none. Raises DamagedError."""
    note, figures = read_json(folder / CHOSEN), folder / "figures.json"
    digest = note.pop("digest", None)  # not there in earlier versions
    if digest is not None and (digest != json_digest(note) or not same_file(figures, note["figures"])):
        raise DamagedError(
            f"{folder / CHOSEN} or {figures.name} was changed since `soften` wrote them: give the same command once "
            "more, with another --to"
        )
    return float(note.get("alpha") or 0.0)


def _shown(folder: Path, command: str, results: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Return the result that a line on a measurement shows; of `soften` with the figures that it reports."""
    if command == "soften":
        name = f"alpha-{chosen_alpha(folder):g}"
        card = read_json(folder / "figures.json").get(name)
        return {"arm": name, "method": MEASURED, "learning_rate": 0.0, "scorecard": card} if card else None
    whole = [result for result in results if result]
    return best(whole) or max(whole, key=lambda r: figure(r, "retention") or 0.0, default=None)


def best(results: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Return the finished result with the highest gain and then retention, None if there is none."""
    measured = [r for r in results if r["status"] == "finished" and gain(r) is not None]
    return max(measured, key=lambda r: (gain(r) or 0.0, figure(r, "retention") or 0.0), default=None)


def gain(result: Mapping[str, Any]) -> float | None:
    """Return the gain of a result: of accuracy, or of the new texts in nats per token."""
    return next((figure(result, name) for name in GAINS if name in result["scorecard"]), None)


def figure(result: Mapping[str, Any], name: str) -> float | None:
    """Return the value of a figure of the scorecard, None if it was not measured or is not a number."""
    value = result["scorecard"].get(name, {}).get("value")
    return value if value is not None and value == value else None


def arm_text(result: Mapping[str, Any] | None) -> str:
    """Return the arm of a result with its learning rate; a model that was trained elsewhere has none."""
    if result is None:
        return ""
    return str(result["arm"]) if result["method"] == MEASURED else f"{result['arm']} {result['learning_rate']:g}"


def read_config(path: Path) -> dict[str, Any]:
    """Return the plain values of the YAML that a run or a study keeps in its folder. Raises ConfigError."""
    try:
        text = path.read_text(encoding="utf-8")
        values = yaml.load(text, LOADER if len(text) < DEEP else yaml.SafeLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not YAML: {error}; the folder cannot be read without it") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} has no mapping at the top; the folder cannot be read without it")
    return values


def own_config(folder: Path) -> dict[str, Any]:
    """Return the plain values of a run's config. Raises ConfigError, also if it is not the one that its journal noted.

    Without a journal (a run that was copied from another machine) nothing is known.
    """
    values, file = read_config(folder / "config.yaml"), folder / "config.yaml"
    events = [event for path in folder.glob(PATTERN) for event, _ in Journal(path).read() if event["event"] == "params"]
    now = flatten(values)
    noted = sorted(events, key=lambda event: event["time"])[-1]["params"] if events else now
    if edited := sorted(name for name in noted.keys() | now.keys() if noted.get(name) != now.get(name)):
        raise ConfigError(
            f"{file} was edited: it has other settings than {folder.name} ran with ({edited[0]}). Bring it back, or "
            "delete it and run the same config again, which writes it anew"
        )
    return values


def age(updated: float) -> str:
    """Return the time since then: `40 s`, `5 min`, `3 h`, `2 d`."""
    seconds = max(0.0, time.time() - updated)
    for unit, size, limit in (("s", 1, 120), ("min", 60, 7200), ("h", 3600, 172_800)):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86_400:.0f} d"


def _process(journals: Iterable[Path]) -> str:
    """Return the status of a run that is not whole, from the last event of its latest journal and its process."""
    latest = max(map(Journal, journals), key=lambda j: j.path.stat().st_mtime, default=None)
    events = [e for e, _ in latest.read() if e["event"] in ("start", "end")] if latest else []
    return state_after(events[-1]) if events else "stopped"


def state_after(event: Event) -> str:
    """Return running, finished, failed, stopped or unknown, from the last start or end of a run and its process."""
    if event["event"] == "end":
        return ENDS[event["status"]]
    alive = process_state(event["tags"])
    return "unknown" if alive is None else "running" if alive else "stopped"


def _updated(folder: Path, runs: Iterable[Path] = ()) -> float:
    """Return when one of the files that are signs of progress was last written."""
    patterns = ("*.yaml", "*.json", "report.html", PATTERN, "arms/*/*")
    files = [path for one in (folder, *runs) for pattern in patterns for path in one.glob(pattern)]
    return max(map(_written, files), default=0.0)


def _written(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # a temporary file of a run that is going on
        return 0.0
