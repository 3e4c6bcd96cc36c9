"""Read the arms of a run folder, to compare them: their records, their base's, and why one did not finish."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from experiments.common.errors import CompareError
from experiments.common.files import read_json, read_note
from experiments.common.hashing import same_file
from experiments.comparison.configs import MODEL, graders_of, grading_of, named_arms, read_stages, room_of
from experiments.records import MEASURED, Estimate, Record, read_records
from experiments.runs.result_file import MADE_FROM, check_files

KEPT = Path("trained") / "kept.json"  # in an arm's folder: of which step its weights are (`runs.trained`)
BEST = Path("best") / "forgetting.json"  # in a ForgettingCallback's folder, of which step the model there is
NOT_BEGUN = "it has not begun"


@dataclass(frozen=True)
class ComparedRun:
    """One model to compare: an arm, a trial of a study, or a model that lm_eval measured.

    base: records of the model before training; empty if they are not known. checkpoints: records by step. figures: only
    if there are no records (an export whose run folders are elsewhere). stages: of a stream, the last step of each
    task's stage, in the order of learning. fault: why it did not finish. left_out: tasks of lm_eval without
    a verdict, or suites that a model cannot have, and why. tokens: that it was trained on; NaN if they are not known.
    method: empty if it is not known. remark: what else a reader must know of it. kept: the step of the weights that
    are there, if it is not the last one (`training.keep: best`, keep_best). graded: by which graders the replies to the
    new task's questions were; grading: a digest of all that grades, by suite and task; room: most tokens of a reply by
    suite and task; each if it is known.
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
    remark: str = ""
    kept: int | None = None
    graded: str = ""
    grading: Mapping[tuple[str, str], str] = field(default_factory=dict)
    room: Mapping[tuple[str, str], int] = field(default_factory=dict)

    @property
    def after(self) -> Sequence[Record]:
        """Records of the last checkpoint."""
        return self.checkpoints[max(self.checkpoints)] if self.checkpoints else ()

    @property
    def usable(self) -> Sequence[Record]:
        """Records of the weights that are there: those of the last checkpoint, unless others were kept."""
        return self.after if self.kept is None else self.checkpoints[self.kept]


def is_run(folder: Path) -> bool:
    return (folder / "config.yaml").is_file() or (folder / "base" / "items.jsonl").is_file()


def read_arms(folder: Path) -> list[ComparedRun]:
    try:
        base = read_base(folder)
        named = named_arms(folder)
        found = sorted((folder / "arms").glob("*"), key=lambda arm: (_place(arm.name, named), arm.name))
        runs = [read_arm(arm, base) for arm in found if arm.is_dir()]
        runs += [read_arm(made.parent, base) for made in sorted(folder.glob("posthoc/*/result.json"))]
        runs = of_run(folder, runs)
    except ValueError as error:
        raise CompareError(str(error)) from error
    if not runs:
        raise CompareError(f"{folder} has no arms yet: run it first")
    begun = {run.name for run in runs}
    return runs + [ComparedRun(name, fault=NOT_BEGUN) for name in named if name not in begun]


def of_run(folder: Path, arms: Iterable[ComparedRun]) -> list[ComparedRun]:
    """Add what their run says of all of them to arms, and to what was made of these."""
    stages, graded, grading, room = read_stages(folder), graders_of(folder), grading_of(folder), room_of(folder)
    return [replace(arm, stages=stages, graded=graded, grading=grading, room=room) for arm in arms]


def _place(arm: str, named: Sequence[str]) -> int:
    """Arms are in the order of the config, as in the report: the first is what the others are compared with."""
    return named.index(arm) if arm in named else len(named)


def read_base(folder: Path) -> list[Record]:
    """Read the records of a run's base model. Raises CompareError if there are none: no arm may stand in for it."""
    items = folder / "base" / "items.jsonl"
    records = read_records(items) if items.is_file() else []
    if not records:
        state = (
            "is empty: delete it and start the run again" if items.is_file() else "is not there: start the run first"
        )
        raise CompareError(f"{folder} has no records of its base model: {items.relative_to(folder)} {state}")
    return records


def read_arm(folder: Path, base: Sequence[Record]) -> ComparedRun:
    steps = {int(file.stem.removeprefix("items-")): file for file in folder.glob("items-*.jsonl")}
    values, fault = _result(folder, steps)
    if not fault:
        steps = {step: file for step, file in steps.items() if step in (_measured(values) or steps)}
    noted = read_json(folder / MODEL)
    left_out = noted.get("left_out", {})
    kept, setting = _kept_step(folder, values) if folder.parent.name == "arms" else (None, "")
    kept = kept if kept in steps and kept != max(steps) else None
    remark = noted.get("remark") or _of_kept(kept, steps, setting)
    remark = _of_step(folder, values) if folder.parent.name == "posthoc" else remark
    return ComparedRun(
        folder.name,
        without(base, left_out),
        {step: read_records(steps[step]) for step in sorted(steps)},
        fault=fault or None,
        left_out=tuple(f"suite {suite}: {reason}" for suite, reason in left_out.items()),
        tokens=values.get("cost", {}).get("tokens", math.nan),
        method="" if values.get("method") == MEASURED else str(values.get("method", "")),
        learning_rate=float(values.get("learning_rate", 0.0)),
        remark=remark,
        kept=kept,
    )


def _kept_step(arm: Path, result: Mapping[str, Any]) -> tuple[int | None, str]:
    """Return the step of the weights that are there, if it was noted, and the setting that kept them.

    Raises CompareError if the note is another one: the last step would be judged in its place. What was unpacked from a
    study's file has no weights, nor their note. The model that a ForgettingCallback kept may be an earlier training's.
    """
    run = arm.parents[1]
    best, training = read_json(run / BEST), read_note(run / "base" / "state.json").get("training")
    if training and best.get("training") == training:
        return best["step"], "keep_best"
    note = arm / KEPT
    digest = result.get(MADE_FROM, {}).get(note.relative_to(arm.parents[1]).as_posix())
    if digest and note.parent.is_dir() and not same_file(note, digest):
        raise CompareError(
            f"{note} is not the file that was written, so nobody knows of which step the weights are: bring it back, "
            f"or delete the folder {arm} and start the run again"
        )
    return read_note(note).get("step"), "training.keep: best"


def _result(arm: Path, steps: Mapping[int, Path]) -> tuple[dict[str, Any], str]:
    """Return an arm's result, and why it did not finish. Raises CompareError for records that were changed."""
    result = arm / "result.json"
    if not result.is_file():
        _check_noted(arm, steps.values())
        return {}, "it has not finished"
    values = read_json(result)
    status = values.get("status", "damaged")
    lacking = _lacking(values, steps) if status == "finished" else f"{status}: {values.get('reason')}"
    if status != "finished" or not lacking:
        check_files(result)
    return values, lacking


def _check_noted(arm: Path, files: Iterable[Path]) -> None:
    """Raise CompareError for records of an arm without a result, or of its base, that are not as they were written."""
    from experiments.runs.arm_records import is_whole  # loads torch; only a run that goes on needs it
    from experiments.runs.base_records import ITEMS
    from experiments.runs.base_records import is_whole as whole_base

    base = arm.parents[1] / "base" / ITEMS
    damaged = [base] if base.is_file() and not whole_base(base) else [file for file in files if not is_whole(file)]
    if damaged:
        raise CompareError(
            f"{damaged[0]} is not the file that was written: start the run again, which measures it anew"
        )


def _of_kept(kept: int | None, steps: Collection[int], setting: str) -> str:
    """Say that an arm's weights are of another step than its figures, which are compared at equal steps."""
    if kept is None:
        return ""
    return f"the figures are of step {max(steps)}, but the weights that were kept of step {kept} ({setting})"


def _of_step(folder: Path, values: Mapping[str, Any]) -> str:
    """Say which step's weights an operation changed, if the arm that is compared has a later one's (`keep: best`)."""
    arm = f"{values.get('arm')}-{values.get('learning_rate', 0.0):g}"
    last, step = read_json(folder.parents[1] / "arms" / arm / "result.json").get("steps"), values.get("steps")
    if last is None or step == last:
        return ""
    return f"made of the weights of step {step} (training.keep: best), and {arm} has the figures of step {last}"


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
