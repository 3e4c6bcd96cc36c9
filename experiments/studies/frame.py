"""Put the figures of runs, studies and MLflow into one table, a row per arm, step and figure."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.common.errors import CompareError, ConfigError
from experiments.common.paths import SHIPPED, root_folder, short_path
from experiments.common.result_folders import find, folders, trial_runs
from experiments.common.section import nearest
from experiments.common.yaml_values import read_yaml
from experiments.config import check_unedited, load_config
from experiments.records import MEASURED, ArmResult, Estimate
from experiments.runs.result_file import RESULT, read_result, whole_results
from experiments.studies.load import load_study
from experiments.studies.queue import Store
from experiments.studies.storage import storage_url
from experiments.studies.trial_results import result_of
from experiments.tracking.store import TrackingStore

if TYPE_CHECKING:
    import pandas as pd

MLFLOW = "mlflow:"
OPERATIONS = f"posthoc/*/{RESULT}"  # in the folder of a run
TYPES = {
    "source": "string",
    "run": "string",
    "trial": "Int64",
    "arm": "string",
    "method": "string",
    "learning_rate": "Float64",
    "operation": "string",
    "seed": "Int64",
    "status": "string",
    "step": "Int64",
    "figure": "string",
    "value": "Float64",
    "low": "Float64",
    "high": "Float64",
}
Row = dict[str, Any]


def frame(*sources: str | Path, root: str | Path | None = None) -> pd.DataFrame:
    """Return a row for each arm, evaluation and figure of some sources, in the columns of TYPES.

    A source is the folder of a run, the beginning of its name, the name of a study, or `mlflow:EXPERIMENT`. Without a
    source: all studies, and all runs that are not of a study. root: where they are (default: mlruns). A study has a
    column `pick/NAME` for each dimension, and no rows of trials that repeat another one's picks: they have its runs.
    low and high: the 95 % interval; from MLflow of arms that have ended. cost/NAME is at the last step. operation: of
    the results of `posthoc`. Nothing is written. Raises ConfigError, CompareError or StudyError for a source that is
    not there, DamagedError for a result that was changed.
    """
    import pandas as pd

    root = root_folder(root)
    found = [one if one.startswith(MLFLOW) else str(find(one, root)) for one in map(str, sources or _all(root))]
    rows = [row for source in dict.fromkeys(found) for row in _rows(source, root)]  # each once: twice, n would double
    table = pd.DataFrame(rows, columns=[*TYPES, *sorted({key for row in rows for key in row} - set(TYPES))])
    return table.astype(TYPES)


def _all(root: Path) -> list[Path]:
    """Return the folders of the studies and of the runs that are not a study's trials."""
    studies, runs = folders(root)
    trials = [run for study in studies for run in trial_runs(study, runs)]
    return [*studies, *(run for run in runs if run not in trials)]


def _rows(source: str, root: Path) -> Iterator[Row]:
    if source.startswith(MLFLOW):
        return _tracked(source.removeprefix(MLFLOW), root)
    folder = find(source, root)
    if (folder / "study.yaml").is_file():
        return _study(folder, folder.parents[1])  # the folder's own root: another may have such a study
    if (folder / "config.yaml").is_file():
        return _run(folder)
    raise CompareError(f"{short_path(folder)} is a measurement, whose figures are in its figures.json: name a run")


def _run(folder: Path) -> Iterator[Row]:
    files = [*sorted(folder.glob(f"arms/*/{RESULT}")), *sorted(folder.glob(OPERATIONS))]
    seed = _seed(folder)
    for result in whole_results(files):
        yield from _figures(result, {"source": folder.name, "run": str(folder), "seed": seed})


def _seed(folder: Path) -> int:
    """Return the seed of a run. Raises ConfigError for a config that was edited since: it may have another one."""
    file = folder / "config.yaml"
    try:
        config = load_config(file)
    except ConfigError:  # of another version
        return int(read_yaml(file, SHIPPED, "config file")[1].get("seed", 0))
    check_unedited(folder, config)
    return config.seed


def _study(folder: Path, root: Path) -> Iterator[Row]:
    config = load_study(folder / "study.yaml")
    for trial in Store(storage_url(root, config.storage), name=config.name).trials():
        if trial.repeats is not None:  # its runs are those of that trial: a mean would count them twice
            continue
        picks = {f"pick/{key}": pick for key, pick in trial.picks.items()}
        for run in trial.runs:
            place = {
                "source": config.name,
                "run": str(root / run["folder"]),
                "trial": trial.number,
                "seed": run["seed"],
            }
            made = whole_results(sorted((root / run["folder"]).glob(OPERATIONS)))  # those that are on this machine
            for result in (result_of(run), *made):
                yield from _figures(result, {**place, **picks})


def _figures(result: ArmResult, place: Row) -> Iterator[Row]:
    """Return the rows of one arm: its trajectory, and at the last step its scorecard and cost."""
    row = {**place, "arm": result.arm, "method": result.method, "operation": result.operation, "status": result.status}
    row["learning_rate"] = None if result.method == MEASURED else result.learning_rate
    last: dict[str, Estimate] = {**result.scorecard, **{f"cost/{k}": Estimate(v) for k, v in result.cost.items()}}
    for point in result.trajectory:
        figures = {name: value for name, value in point.items() if isinstance(value, Estimate)}
        if point["step"] == result.steps:
            figures, last = {**figures, **last}, {}
        yield from _each(figures, {**row, "step": point["step"]})
    yield from _each(last, {**row, "step": result.steps})


def _each(figures: dict[str, Estimate], row: Row) -> Iterator[Row]:
    for name, value in figures.items():
        yield {**row, "figure": name, "value": value.value, "low": value.low, "high": value.high}


def _tracked(experiment: str, root: Path) -> Iterator[Row]:
    """Return the metrics of arms and operations in an MLflow experiment, at all their steps, without the machine's."""
    store = TrackingStore(root, os.environ.get("MLFLOW_TRACKING_URI"))
    if store.local and not (root / "mlflow.db").is_file():
        raise CompareError(f"{MLFLOW}{experiment}: there is no store {short_path(root / 'mlflow.db')}")
    found = store.client.get_experiment_by_name(experiment)
    if found is None:
        names = [one.name for one in store.client.search_experiments()]
        raise CompareError(f"{MLFLOW}{experiment}: the store has no such experiment: {nearest(experiment, names)}")
    seeds: dict[str, str | None] = {}  # of arms by the id of their runs; an operation has its arm's
    for run in (run for kind in ("arm", "posthoc") for run in _of_kind(store.client, found.experiment_id, kind)):
        params, tags = run.data.params, run.data.tags
        row = {"source": f"{MLFLOW}{experiment}", "run": run.info.run_id, "status": run.info.status.lower()}
        row |= {"status": "pruned"} if "pruned" in tags else {}
        row |= {"arm": params.get("arm"), "method": params.get("method"), "operation": _operation(tags)}
        seed = seeds[run.info.run_id] = params.get("seed", seeds.get(tags.get("source_run", "")))
        row |= {"learning_rate": _number(params.get("learning_rate")), "seed": _number(seed)}
        ends = _intervals(store.client, run.info.run_id)
        for name in (name for name in run.data.metrics if not name.startswith("system/")):
            for point in store.client.get_metric_history(run.info.run_id, name):
                low, high = ends.get((name, point.step), (None, None))
                yield {**row, "step": point.step, "figure": name, "value": point.value, "low": low, "high": high}


def _intervals(client: Any, run_id: str) -> dict[tuple[str, int], tuple[float | None, float | None]]:
    """Return the ends of the intervals of an arm by figure and step: metrics have none, its artifact has."""
    # an arm on its way has none yet, and a server may have no artifacts
    with contextlib.suppress(Exception), tempfile.TemporaryDirectory() as scratch:
        result = read_result(Path(client.download_artifacts(run_id, f"scorecard/{RESULT}", scratch)))
        return {(row["figure"], row["step"]): (row["low"], row["high"]) for row in _figures(result, {})}
    return {}


def _operation(tags: Mapping[str, str]) -> str | None:
    """Return the name of an operation as its result has it, `wise 0.5`; None for an arm."""
    if "operation" not in tags:
        return None
    alpha = _number(tags.get("alpha"))
    others = tags.get("others", "").split(", ")
    return " ".join(filter(None, (tags["operation"], *others, "" if alpha is None else f"{alpha:g}")))


def _of_kind(client: Any, experiment: str, kind: str) -> Iterator[Any]:
    """Return the runs of a kind, a page at a time."""
    token = None
    while True:
        page = client.search_runs([experiment], f"tags.kind = '{kind}'", max_results=1000, page_token=token)
        yield from page
        if not (token := page.token):
            return


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None
