"""Read what is compared: arms of run folders, trials of a study's export, folders of lm_eval samples."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from experiments.common.errors import CompareError, ConfigError
from experiments.common.files import parse_json, read_json
from experiments.common.paths import SHIPPED
from experiments.common.section import nearest
from experiments.common.yaml_values import read_yaml
from experiments.records import MEASURED, ArmResult, Estimate, Record, read_records
from experiments.reporting.stream import stage_steps
from experiments.runs.result_file import check_files

TABLES = (".csv", ".parquet", ".json")
MODEL = "model.json"  # in an arm's folder: what `control-llm measure` measured, and suites left out with the reasons


@dataclass(frozen=True)
class ComparedRun:
    """One model to compare: an arm, a trial of a study, or a model that lm_eval measured.

    base: records of the model before training; empty if they are not known. checkpoints: records by step. figures: only
    if there are no records (an export whose run folders are elsewhere). stages: of a stream, the last step of each
    task's stage, in the order of learning. fault: why it did not finish. left_out: tasks of lm_eval without
    a verdict, or suites that a model cannot have, and why. tokens: that it was trained on; NaN if they are not known.
    method: empty if it is not known.
    """

    name: str
    base: Sequence[Record] = ()
    checkpoints: Mapping[int, Sequence[Record]] = field(default_factory=dict)
    figures: Mapping[str, Estimate] = field(default_factory=dict)
    stages: Mapping[str, int] = field(default_factory=dict)
    fault: str | None = None
    left_out: Sequence[str] = ()
    tokens: float = math.nan
    method: str = ""
    learning_rate: float = 0.0

    @property
    def after(self) -> Sequence[Record]:
        """Records of the last checkpoint."""
        return self.checkpoints[max(self.checkpoints)] if self.checkpoints else ()


def read_runs(sources: Sequence[str], base: str | None = None, new: Sequence[str] = ()) -> list[ComparedRun]:
    """Read all runs of these sources, with different names. base: a source to measure runs without a base from.

    A source is a run folder (all its arms, and the results of `posthoc`), `folder:arm-lr` or the arm's own folder, a
    study's export (CSV, Parquet or JSON), or a folder of lm_eval samples. Without `base`, the first run that has no
    base of its own becomes the base of the others, and is not compared itself. new: patterns of lm_eval's tasks that
    were learned (`gsm8k*`); all others count as kept. Raises CompareError.
    """
    found = [(source, run) for source in sources for run in _runs(source, new)]
    several = len({source for source, _ in found}) > 1
    if new and not any(_is_samples(Path(source)) for source in (*sources, *([base] if base else []))):
        raise CompareError(f"--new {' '.join(new)} names tasks of lm_eval samples, but none are given: leave it out")
    names = [run.name for _, run in found]
    runs = []
    for source, run in found:
        clash = several and names.count(run.name) > 1
        runs.append(replace(run, name=f"{Path(source.partition(':')[0]).name}:{run.name}") if clash else run)
    if base is None:
        return share_base(runs)
    if any(_same(base, source) and run.checkpoints and not run.base for source, run in found):
        raise CompareError(f"--base {base} is the run itself: name what was measured before training")
    before = _runs(base, new)[0]
    records = before.base or before.after
    if not records:
        raise CompareError(f"--base {base} has no item records here: name a run folder, or one of lm_eval samples")
    if all(run.base for _, run in found):
        raise CompareError(f"--base {base} has no effect: each RUN has a base of its own; leave it out")
    return share_base(runs, records)


def share_base(runs: Sequence[ComparedRun], base: Sequence[Record] = ()) -> list[ComparedRun]:
    """Give `base` to the runs that have records but no base; without `base`, the first of these becomes it.

    That run leaves the list. Raises CompareError if no other is left to be measured.
    """
    bare = [run for run in runs if run.checkpoints and not run.base]
    if bare and not base:
        if len(bare) == 1:
            raise CompareError(f"{bare[0].name} has no base to be measured from: name it with --base, or as first RUN")
        base = bare[0].after
        runs = [run for run in runs if run is not bare[0]]
    return [replace(run, base=base) if run.checkpoints and not run.base else run for run in runs]


def _runs(source: str, new: Sequence[str] = ()) -> list[ComparedRun]:
    path = Path(source)
    if path.suffix in TABLES and path.is_file():
        return _export(path)
    if path.is_dir():
        path = path.resolve()  # "." has no name
        above = path.parent.parent
        if path.parent.name in ("arms", "posthoc") and _is_run(above):
            return [run for run in _arms(above) if run.name == path.name]
        return _arms(path) if _is_run(path) else [_samples(path, new)]
    for folder, arm in _split(source):
        arms = {run.name: run for run in _arms(Path(folder))}
        if arm not in arms:
            raise CompareError(f"{folder} has no arm {arm!r}: {nearest(arm, arms)}")
        return [arms[arm]]
    raise CompareError(
        f"{source!r} is no run: name a run folder (mlruns/runs/...), `folder:arm-lr`, a study's export "
        f"({', '.join(TABLES)}), or a folder of lm_eval samples"
    )


def _split(source: str) -> Iterator[tuple[str, str]]:
    """Split `folder:arm` at the colon after which there is a folder: both may have colons in their names."""
    words = source.split(":")
    halves = ((":".join(words[:i]), ":".join(words[i:])) for i in range(1, len(words)))
    return ((folder, arm) for folder, arm in halves if Path(folder).is_dir())


def _is_samples(folder: Path) -> bool:
    return folder.is_dir() and not _is_run(folder) and not _is_run(folder.resolve().parent.parent)


def _is_run(folder: Path) -> bool:
    return (folder / "config.yaml").is_file() or (folder / "base" / "items.jsonl").is_file()


def _arms(folder: Path) -> list[ComparedRun]:
    try:
        base = _base(folder)
        stages = _stages(folder)
        runs = [replace(_arm(arm, base), stages=stages) for arm in sorted((folder / "arms").glob("*")) if arm.is_dir()]
        runs += [_arm(made.parent, base) for made in sorted(folder.glob("posthoc/*/result.json"))]
    except ValueError as error:
        raise CompareError(str(error)) from error
    if not runs:
        raise CompareError(f"{folder} has no arms yet: run it first")
    return runs


def _base(folder: Path) -> list[Record]:
    """Read the records of a run's base model. Raises CompareError if there are none: no arm may stand in for it."""
    items = folder / "base" / "items.jsonl"
    records = read_records(items) if items.is_file() else []
    if not records:
        state = (
            "is empty: delete it and start the run again" if items.is_file() else "is not there: start the run first"
        )
        raise CompareError(f"{folder} has no records of its base model: {items.relative_to(folder)} {state}")
    return records


def _same(one: str, other: str) -> bool:
    return Path(one).resolve() == Path(other).resolve()


def _stages(folder: Path) -> dict[str, int]:
    """Find the last step of each stage; none if the run is no stream, or its config is of another version.

    Raises ConfigError if the config was edited: its stages are not those of the records.
    """
    path = folder / "config.yaml"
    try:
        data = read_yaml(path, SHIPPED, "config file")[1].get("data") or {}
        if data.get("order") != "sequential":
            return {}
        from experiments.config import check_unedited, load_config  # loads torch; few runs need it

        config = load_config(path)
    except ConfigError:
        return {}
    check_unedited(folder, config)
    return stage_steps(config)


def _arm(folder: Path, base: Sequence[Record]) -> ComparedRun:
    steps = {int(file.stem.removeprefix("items-")): file for file in folder.glob("items-*.jsonl")}
    result = folder / "result.json"
    fault, values = "it has not finished", {}
    if result.is_file():
        values = read_json(result)
        status = values.get("status", "damaged")
        fault = _lacking(values, steps) if status == "finished" else f"{status}: {values.get('reason')}"
        if not fault:
            check_files(result)
            steps = {step: file for step, file in steps.items() if step in (_measured(values) or steps)}
    left_out = read_json(folder / MODEL).get("left_out", {})
    return ComparedRun(
        folder.name,
        without(base, left_out),
        {step: read_records(steps[step]) for step in sorted(steps)},
        fault=fault or None,
        left_out=tuple(f"suite {suite}: {reason}" for suite, reason in left_out.items()),
        tokens=values.get("cost", {}).get("tokens", math.nan),
        method="" if values.get("method") == MEASURED else str(values.get("method", "")),
        learning_rate=float(values.get("learning_rate", 0.0)),
    )


def without(records: Sequence[Record], left_out: Collection[str]) -> list[Record]:
    """Return the records of other suites than those left out, which a model of another kind cannot have.

    left_out: names of suites, or SUITE/FORM for records of one form.
    """
    return [record for record in records if not _is_left_out(record, left_out)]


def _is_left_out(record: Record, left_out: Collection[str]) -> bool:
    if "lm_eval" in left_out and record.form.startswith("lm_eval"):  # whose records are of suites new and kept
        return True
    return record.suite in left_out or f"{record.suite}/{record.form}" in left_out


def _lacking(result: Mapping[str, Any], steps: Collection[int]) -> str:
    """Name the item records of a finished arm that are not there; empty if there are all."""
    lacking = ", ".join(f"items-{step}.jsonl" for step in sorted(_measured(result) - set(steps)))
    return f"it is damaged, {lacking} is missing: delete its folder and start the run again" if lacking else ""


def _measured(result: Mapping[str, Any]) -> set[int]:
    """Return the steps whose records a result was made from; none if it does not name them."""
    return {*(point["step"] for point in result.get("trajectory", ())), result.get("steps", 0)} - {0}


def _samples(folder: Path, new: Sequence[str]) -> ComparedRun:
    try:
        from experiments.evaluation.lm_eval_samples import read_samples
    except ImportError as error:
        raise CompareError(f"{folder} is no run folder, and lm_eval samples cannot be read here ({error})") from error
    try:
        records, left_out = read_samples(folder, new)
    except ValueError as error:
        raise CompareError(f"{folder} is neither a run folder nor one of lm_eval samples: {error}") from error
    return ComparedRun(folder.name, checkpoints={1: records}, left_out=left_out)


def _export(path: Path) -> list[ComparedRun]:
    """Read the rows of a study's export: from the run folder if it is here, else the figures of the table."""
    try:
        rows = _json_rows(path) if path.suffix == ".json" else _table_rows(path)
    except (KeyError, TypeError, ValueError) as error:
        raise CompareError(f"{path} is no export of a study ({type(error).__name__}: {error})") from error
    try:
        runs = [_row(path, **row) for row in rows]
    except ValueError as error:
        raise CompareError(str(error)) from error
    if not runs:
        raise CompareError(f"{path} has no trial with figures: wait until one has finished")
    return runs


def _json_rows(path: Path) -> list[dict[str, Any]]:
    rows = []
    for trial in parse_json(path.read_text(encoding="utf-8"))["trials"]:
        for run in trial["runs"] if trial.get("repeats") is None else ():  # else they are those of another trial
            result = ArmResult.from_dict(run["result"])
            arm = f"{result.arm}-{result.learning_rate:g}"
            name = f"trial {trial['number']} {arm} seed {run['seed']}"
            fault = None if result.status == "finished" else f"{result.status}: {result.reason}"
            row = {"name": name, "folder": run["folder"], "arm": arm, "figures": result.scorecard}
            rows.append({**row, "fault": fault or _unfinished(trial)})
    return rows


def _table_rows(path: Path) -> list[dict[str, Any]]:
    import pandas as pd

    table = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
    names = [column.removesuffix("_low") for column in table.columns if column.endswith("_low")]
    rows = []
    for row in table.to_dict("records"):
        figures = {n: _cell(row, n) for n in names if n in row and pd.notna(row[n])}
        if not figures or row.get("arm") == "base" or not _empty(row.get("repeats")):
            continue
        arm = f"{row['arm']}-{row['learning_rate']:g}"
        parts = [
            f"trial {row['trial']}" if "trial" in row else "",
            arm,
            f"seed {row['seed']:g}" if "seed" in row else "",
        ]
        name = " ".join(filter(None, parts))
        folder = row.get("folder") if isinstance(row.get("folder"), str) else None
        rows.append({"name": name, "folder": folder, "arm": arm, "figures": figures, "fault": _unfinished(row)})
    return rows


def _unfinished(trial: Mapping[Any, Any]) -> str | None:
    """Say that a trial of an export has not finished, and why; None if it has, or if nobody knows."""
    state, reason = trial.get("state", "complete"), trial.get("reason")
    return None if state == "complete" else str(state) if _empty(reason) else f"{state}: {reason}"


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
            found = _arm(arms, _base(root / str(folder)))
            return replace(found, name=name, stages=_stages(root / str(folder)))
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
