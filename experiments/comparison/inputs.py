"""Read what is compared: arms of run folders, trials of a study's export, folders of lm_eval samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

from experiments.common.errors import CompareError
from experiments.common.section import nearest
from experiments.comparison.exports import TABLES, read_export
from experiments.comparison.folders import ComparedRun, is_run, read_arms
from experiments.records import Record, arm_and_rate


def read_runs(sources: Sequence[str], base: str | None = None, new: Sequence[str] = ()) -> list[ComparedRun]:
    """Read all runs of these sources, with different names. base: a source to measure runs without a base from.

    A source is a run folder (all its arms, and the results of `posthoc`), `folder:arm-lr` or the arm's own folder, a
    study's export (CSV, Parquet or JSON), or a folder of lm_eval samples. Without `base`, the first run that has no
    base of its own becomes the base of the others, and is not compared itself. new: patterns of lm_eval's tasks that
    were learned (`gsm8k*`); all others count as kept. Raises CompareError.
    """
    found = [(source, run) for source in sources for run in _runs(source, new)]
    several = len({source for source, _ in found}) > 1
    if new:
        _check_new(new, [*sources, *([base] if base else [])])
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
    if not any(run.checkpoints and not run.base for _, run in found):
        raise CompareError(f"--base {base} has no effect: each RUN has a base of its own; leave it out")
    return share_base(runs, records)


def _check_new(new: Sequence[str], sources: Sequence[str]) -> None:
    """Raise CompareError for a pattern of --new that no task has: a mistyped one would count the task as kept."""
    samples = [Path(source) for source in sources if _is_samples(Path(source))]
    if not samples:
        raise CompareError(f"--new {' '.join(new)} names tasks of lm_eval samples, but none are given: leave it out")
    from experiments.evaluation.lm_eval_files import latest_files

    tasks = sorted({task for folder in samples for task in latest_files(folder)})
    if idle := [pattern for pattern in new if not any(fnmatch(task, pattern) for task in tasks)]:
        raise CompareError(f"--new {idle[0]}: no task of these samples has such a name: {', '.join(tasks)}")


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
        return read_export(path)
    if path.is_dir():
        path = path.resolve()  # "." has no name
        above = path.parent.parent
        if path.parent.name in ("arms", "posthoc") and is_run(above):
            return [run for run in read_arms(above) if run.name == path.name]
        return read_arms(path) if is_run(path) else [_samples(path, new)]
    for folder, arm in _split(source):
        arms = {run.name: run for run in read_arms(Path(folder))}
        if arm not in arms and (found := arm_and_rate(arm)):  # full-1e-3 is full-0.001
            arm = f"{found[0]}-{found[1]:g}"
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
    return folder.is_dir() and not is_run(folder) and not is_run(folder.resolve().parent.parent)


def _same(one: str, other: str) -> bool:
    return Path(one).resolve() == Path(other).resolve()


def _samples(folder: Path, new: Sequence[str]) -> ComparedRun:
    if (folder / "arms").is_dir():  # of `measure` or a ForgettingCallback
        raise CompareError(
            f"{folder} has no records of its base model (base/items.jsonl): bring them back, or measure anew"
        )
    try:
        from experiments.evaluation.lm_eval_files import measured_apart
        from experiments.evaluation.lm_eval_samples import read_samples
    except ImportError as error:
        raise CompareError(f"{folder} is no run folder, and lm_eval samples cannot be read here ({error})") from error
    try:
        records, left_out = read_samples(folder, new)
        remark = measured_apart(folder)
    except ValueError as error:
        raise CompareError(f"{folder} is neither a run folder nor one of lm_eval samples: {error}") from error
    return ComparedRun(folder.name, checkpoints={1: records}, left_out=left_out, remark=remark)
