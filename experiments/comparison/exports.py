"""Read the trials of a study's export, to compare them: from their run folders if these are here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.common.errors import CompareError
from experiments.common.files import parse_json, read_json
from experiments.common.printable import from_csv_cell
from experiments.comparison.folders import ComparedRun, of_run, read_arm, read_base
from experiments.records import ArmResult, Estimate

TABLES = (".csv", ".parquet", ".json")


def read_export(path: Path) -> list[ComparedRun]:
    """Read the rows of a study's export: from the run folder if it is here, else the figures of the table.

    Trials that have none, because they failed or run still, are last.
    """
    try:
        rows = _json_rows(path) if path.suffix == ".json" else _table_rows(path)
    except (KeyError, TypeError, ValueError) as error:
        raise CompareError(f"{path} is no export of a study ({type(error).__name__}: {error})") from error
    if not any(row["figures"] for row in rows):
        raise CompareError(f"{path} has no trial with figures: wait until one has finished")
    try:
        return [_row(path, **row) for row in sorted(rows, key=lambda row: not row["figures"])]
    except ValueError as error:
        raise CompareError(str(error)) from error


def _json_rows(path: Path) -> list[dict[str, Any]]:
    rows = []
    for trial in parse_json(path.read_text(encoding="utf-8"))["trials"]:
        for run in trial["runs"] if trial.get("repeats") is None else ():  # else they are those of another trial
            result = ArmResult.from_dict(run["result"])
            arm = f"{result.arm}-{result.learning_rate:g}"
            name = f"trial {trial['number']} {arm} seed {run['seed']}"
            fault = None if result.status == "finished" else f"{result.status}: {result.reason}"
            card = {n: replace(one, value=_number(one.value)) for n, one in result.scorecard.items()}  # null: no number
            row = {"name": name, "folder": run["folder"], "arm": arm, "figures": card}
            rows.append({**row, "fault": fault or _unfinished(trial)})
        if not trial["runs"] and (fault := _unfinished(trial)):
            rows.append(_bare(f"trial {trial['number']}", fault))
    return rows


def _bare(name: str, fault: str) -> dict[str, Any]:
    """Return the row of a trial without figures: a gate must not pass as if it were not there."""
    return {"name": name, "folder": None, "arm": "", "figures": {}, "fault": fault}


def _table_rows(path: Path) -> list[dict[str, Any]]:
    import pandas as pd

    words: dict[str, Any] = {"dtype": {"arm": "string"}, "keep_default_na": False, "na_values": [""]}  # NA, 007: arms
    table = pd.read_csv(path, **words) if path.suffix == ".csv" else pd.read_parquet(path)
    names = [column.removesuffix("_low") for column in table.columns if column.endswith("_low")]
    rows = []
    for row in table.to_dict("records"):
        figures = {n: _cell(row, n) for n in names if n in row and pd.notna(row[n])}
        fault = _unfinished(row)
        if not _empty(row.get("repeats")) or not (figures or fault):
            continue
        if not figures and "trial" in row:
            rows.append(_bare(f"trial {row['trial']}", str(fault)))
            continue
        if _empty(row.get("learning_rate")):  # the base
            continue
        arm = f"{from_csv_cell(str(row['arm']))}-{row['learning_rate']:g}"
        parts = [
            f"trial {row['trial']}" if "trial" in row else "",
            arm,
            f"seed {row['seed']:g}" if "seed" in row else "",
        ]
        name = " ".join(filter(None, parts))
        folder = row.get("folder") if isinstance(row.get("folder"), str) else None
        rows.append({"name": name, "folder": folder, "arm": arm, "figures": figures, "fault": fault})
    return rows


def _unfinished(trial: Mapping[Any, Any]) -> str | None:
    """Say that a trial of an export, or an arm of a run's table, has not finished, and why; None if nobody knows."""
    state, reason = trial.get("state", trial.get("status", "complete")), trial.get("reason")
    return None if state in ("complete", "finished") else str(state) if _empty(reason) else f"{state}: {reason}"


def _cell(row: Mapping[Any, Any], name: str) -> Estimate:
    low, high = (row[f"{name}{end}"] for end in ("_low", "_high"))
    known = not (_empty(low) or _empty(high))
    return Estimate(float(row[name]), *((float(low), float(high)) if known else ()))


def _empty(cell: Any) -> bool:
    """Whether a cell is empty: CSV has NaN there, Parquet may have None."""
    return cell is None or bool(cell != cell) or cell == ""


def _row(
    path: Path, name: str, folder: str | None, arm: str, figures: Mapping[str, Estimate], fault: str | None
) -> ComparedRun:
    for root in (Path(), Path("mlruns"), *path.resolve().parents) if folder else ():
        arms = root / str(folder) / "arms" / arm
        if arms.is_dir():
            _check_same(path, name, arms, figures)
            (found,) = of_run(root / str(folder), [read_arm(arms, read_base(root / str(folder)))])
            return replace(found, name=name)
    return ComparedRun(name, figures=figures, fault=fault)


def _check_same(path: Path, name: str, arm: Path, figures: Mapping[str, Estimate]) -> None:
    """Raise CompareError if a folder has other results than the export: a run of this name on another machine."""
    card = read_json(arm / "result.json").get("scorecard", {})
    here = {figure: _number(one.get("value")) for figure, one in card.items()}
    other = [n for n, one in figures.items() if n in here and not _equal(_number(one.value), here[n])]
    if other:
        raise CompareError(
            f"{path}, {name}: {other[0]} is {figures[other[0]].value:g}, but {here[other[0]]:g} in {arm}, which has "
            "the same name: move one of them away, or name the run folder itself"
        )


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _equal(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-9) or (one != one and other != other)
