"""A study's trials as a table: the commands `status` and `export`."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.common.errors import ConfigError
from experiments.common.files import write_bytes, write_text
from experiments.common.own_files import is_own
from experiments.common.printable import csv_cell
from experiments.common.progress import duration
from experiments.studies.locks import public_values
from experiments.studies.storage import command_line
from experiments.studies.trial_results import result_of
from experiments.studies.trials import Trial

if TYPE_CHECKING:
    import pandas as pd

    from experiments.studies.queue import Store

FORMATS = (".csv", ".parquet", ".json")
FIRST = ["trial", "state", "feasible"]  # columns of every export
MARKS = {".csv": rf"\A{','.join(FIRST)},", ".json": r'\A\{\s*"study": \{'}  # of earlier exports


def frame(store: Store) -> pd.DataFrame:
    """Make a row per trial and seed, one for a trial without runs.

    Columns: trial, state, feasible, repeats (the trial whose values these are), attempts, seconds, reason; `pick/NAME`;
    `objective/FIGURE`; seed, folder, arm, method, learning_rate, steps; each figure of the scorecard as NAME, NAME_low,
    NAME_high; `cost/NAME`.
    """
    import pandas as pd

    rows = [{**_trial(store, trial), **run} for trial in store.trials() for run in _runs(trial)]
    return pd.DataFrame(rows)


def export(store: Store, path: Path) -> int:
    """Write the trials; returns how many. JSON holds whole trajectories too. An earlier export is replaced.

    Raises ConfigError for another ending, and for a file that is no export.
    """
    if path.suffix not in FORMATS:
        raise ConfigError(f"cannot export to {str(path)!r}: its name must end in {', '.join(FORMATS)}")
    if not _is_export(path):
        raise ConfigError(f"{path} is there and is no export of a study: choose another name, or move that file away")
    path.parent.mkdir(parents=True, exist_ok=True)
    trials = store.trials()
    if path.suffix == ".json":
        values = {"study": public_values(store.config), "trials": [vars(trial) for trial in trials]}
        text = json.dumps(_no_nan(values), indent=2, ensure_ascii=False, allow_nan=False)
        write_text(path, text + "\n")
    elif path.suffix == ".csv":
        write_text(path, frame(store).map(csv_cell).rename(columns=csv_cell).to_csv(index=False))
    else:
        table = frame(store)
        for name in [n for n in table if str(n).startswith("pick/") and table[n].map(type).nunique() > 1]:
            table[name] = table[name].map(str, na_action="ignore")  # a column of Parquet has one type
        write_bytes(path, table.to_parquet(index=False))
    return len(trials)


def _is_export(path: Path) -> bool:
    """Whether a file may be replaced: an earlier export wrote it, or it is not there."""
    if path.suffix != ".parquet" or not path.is_file():
        return is_own(path, MARKS.get(path.suffix, ""))
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_schema(path).names[: len(FIRST)] == FIRST or not path.stat().st_size
    except pyarrow.ArrowException:
        return not path.stat().st_size


def status_text(store: Store, root: Path) -> str:
    """Write a line on the whole, one per trial that runs, waits for the next start or failed, and the best so far."""
    config, trials = store.config, store.trials()
    counts, limit = Counter(trial.state for trial in trials), store.limit()
    of = f" of {limit}" if limit is not None else ""
    lines = [
        f"{config.name}: " + (", ".join(f"{n} {state}" for state, n in sorted(counts.items())) or "no trials") + of
    ]
    for state in ("running", "lost", "stopped", "failed"):
        named = [(f"trial {t.number} ({picks_text(t)})", t.reason) for t in trials if t.state == state]
        lines += [f"{state + ':':<8} {name}" + (f": {reason}" if reason else "") for name, reason in named]
    if config.constraints:
        feasible = sum(trial.feasible for trial in trials)
        lines.append(f"within the constraints: {feasible} of {counts['complete']} complete")
    best = set(store.front())
    lines += [
        f"best:    trial {t.number} ({picks_text(t)}): {values_text(store, t)}" for t in trials if t.number in best
    ]
    ended = "" if store.going_on() else store.ended()
    lines.append(ended or f"not finished: {command_line(store, root, 'resume', config.name)}")
    return "\n".join(lines)


def progress_text(store: Store) -> str:
    """Return a line for a study that runs: trials that are done, the best so far, about how long the rest takes."""
    trials, limit, workers = store.trials(), store.limit(), max(store.running(), 1)
    ended = [trial for trial in trials if trial.state in ("complete", "pruned", "failed")]
    parts = [f"{len(ended)} of {limit} trials done" if limit is not None else f"{len(ended)} trials done"]
    best = [trial for trial in trials if trial.number in set(store.front())]
    if len(best) == 1:
        parts.append(f"best so far #{best[0].number} ({picks_text(best[0])}): {values_text(store, best[0])}")
    elif best:
        parts.append(f"front of {len(best)}: " + ", ".join(f"#{trial.number}" for trial in best))
    timed = [trial.seconds for trial in ended if trial.state == "complete" and trial.repeats is None]
    if limit is not None and timed and limit > len(ended):
        parts.append(f"about {duration(sum(timed) / len(timed) * (limit - len(ended)) / workers)} left")
    return "; ".join(parts)


def _no_nan(value: Any) -> Any:
    """Replace what is not a number by None: JSON has no word for it."""
    if isinstance(value, dict):
        return {key: _no_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_no_nan(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def picks_text(trial: Trial) -> str:
    return ", ".join(
        f"{key}={pick:.3g}" if isinstance(pick, float) else f"{key}={pick}" for key, pick in trial.picks.items()
    )


def values_text(store: Store, trial: Trial) -> str:
    pairs = zip(store.config.objectives, trial.values or (), strict=False)
    return ", ".join(f"{objective.figure} {value:.4g}" for objective, value in pairs)


def _trial(store: Store, trial: Trial) -> dict[str, Any]:
    names = [objective.figure for objective in store.config.objectives]
    return {
        "trial": trial.number,
        "state": trial.state,
        "feasible": trial.feasible,
        "repeats": trial.repeats,
        "attempts": trial.attempts,
        "seconds": trial.seconds,
        "reason": trial.reason,
        **{f"pick/{key}": trial.picks.get(key) for key in store.config.search},
        **{f"objective/{name}": trial.values[i] if trial.values else None for i, name in enumerate(names)},
    }


def _runs(trial: Trial) -> list[dict[str, Any]]:
    rows = []
    for run in trial.runs:
        result = result_of(run)
        row: dict[str, Any] = {"seed": run["seed"], "folder": run["folder"], "arm": result.arm, "method": result.method}
        row |= {"learning_rate": result.learning_rate, "steps": result.steps}
        for name, estimate in result.scorecard.items():
            row |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
        rows.append(row | {f"cost/{name}": value for name, value in result.cost.items()})
    return rows or [{}]
