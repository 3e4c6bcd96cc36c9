"""Run an experiment: base evaluated once, every arm trained and evaluated on the same data, report at the end.

All state lies in `mlruns/runs/<name>-<digest>/`; the same config continues there: finished arms are read, not run
again, and a half-run arm resumes from its last whole checkpoint.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout
from matplotlib.figure import Figure
from transformers import PreTrainedModel

import ctrl
from ctrl.structure import decoder_layers, place
from experiments.arm_run import ArmRun, Observer, headline, read_json
from experiments.config import ConfigError, ExperimentConfig, load_config
from experiments.data.mixture import ExperimentData
from experiments.details import (
    Table,
    alignment_pictures,
    cost_table,
    data_table,
    further_table,
    posthoc_table,
    trajectory_table,
)
from experiments.evaluation.cache import BaseCache
from experiments.evaluation.evaluate import Evaluation
from experiments.models import Precision, load_base
from experiments.records import ArmResult, Estimate, Record, read_records, write_json, write_records, write_text
from experiments.report import markdown_table, write_report
from experiments.scorecard import aa_floor, scorecard
from experiments.summary import label
from experiments.tracking.run import Run
from experiments.tracking.tracking import Tracker
from experiments.train import disk_full


class RunError(RuntimeError):
    """The experiment cannot start or go on; the message says what to do. Nothing recorded is lost."""


@dataclass
class Outcome:
    """What a finished experiment leaves: its folder, one result per arm and learning rate, the report."""

    folder: Path
    results: list[ArmResult]
    report: Path
    ui_command: str
    run_url: str
    base: dict[str, Any] = field(default_factory=dict)

    @property
    def failed(self) -> list[ArmResult]:
        return [r for r in self.results if r.status == "failed"]


def run_experiment(
    config: ExperimentConfig,
    root: str | Path | None = None,
    fresh: bool = False,
    say: Callable[[str], None] = print,
    parent: str | None = None,
    observe: Observer | None = None,
    experiment: str | None = None,
) -> Outcome:
    """Run or continue an experiment. fresh: drop what an earlier run of this config left. Raises RunError.

    root: where results go; default: `mlruns` of the project one works in. parent: id of the MLflow run of the study's
    trial that this is. observe: called after each evaluation with the arm's result so far; may raise StopArm.
    experiment: name of the MLflow experiment, if it is not the config's: a study's trials share one.
    """
    root = Path(root) if root else default_root()
    folder = run_folder(config, root)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _only_one(folder):
        if fresh and folder.exists():
            shutil.rmtree(folder)
        try:
            return Experiment(config, root, folder, say, parent, observe, experiment).run()
        except Exception as error:
            if disk_full(error):
                free = shutil.disk_usage(root).free / 1e9
                raise RunError(
                    f"no space left on the disk that holds {root} ({free:.1f} GB free). Everything recorded so far is "
                    "kept: free some space, then run the same command again"
                ) from error
            raise


def default_root() -> Path:
    """The nearest `mlruns` folder at or above the working directory, else one to be made in it."""
    here = Path.cwd()
    return next((p / "mlruns" for p in (here, *here.parents) if (p / "mlruns").is_dir()), here / "mlruns")


def run_folder(config: ExperimentConfig, root: Path) -> Path:
    return root / "runs" / f"{config.name}-{config.digest()}"


class Experiment:
    """The stages of one run; each reads what is on disk and does only what is missing."""

    def __init__(
        self,
        config: ExperimentConfig,
        root: Path,
        folder: Path,
        say: Callable[[str], None] = print,
        parent: str | None = None,
        observe: Observer | None = None,
        experiment: str | None = None,
    ) -> None:
        self.config, self.folder, self.say, self.parent, self.observe = config, folder, say, parent, observe
        self.precision = Precision(config.precision)
        self.tracker = Tracker(root, experiment or config.name)

    def run(self) -> Outcome:
        config = self.config
        write_text(self.folder / "config.yaml", yaml.safe_dump(config.to_dict(), sort_keys=False))
        precision = f"{self.precision.name} ({self.precision.reason})"
        count = sum(len(arm.learning_rates) for arm in config.arms)
        self.say(f"{config.name}: {config.base_model}, {precision}, {count} arms")
        self.tracker.reap()
        saved = read_json(self.folder / "mlflow.json")
        with self.tracker.run(
            config.name,
            kind="experiment",
            parent=self.parent,
            params=config.to_dict(),
            run_id=saved.get("run_id"),
            tags={"run_folder": str(self.folder)},
            folder=self.folder,
        ) as run:
            write_json(self.folder / "mlflow.json", {"run_id": run.id})
            self.prepare()
            run.log_inputs(
                [
                    {**one, "source": one["kind"], "kind": "replay" if one["replayed"] else "training"}
                    for one in self.data.describe()
                ]
            )
            self._estimate()
            results = [arm.run(run) for arm in self.arms]
            return self._finish(run, results)

    def prepare(self) -> None:
        """Data, suites and the base model's own records."""
        config = self.config
        model, self.tokenizer = load_base(config.base_model)
        _check_layers(config, model)

        def writer() -> PreTrainedModel:
            self.say("the base model writes the text of the source `self` (once) ...")
            return model

        self.data = ExperimentData(config, self.tokenizer, writer, self.folder.parents[1] / "cache")
        self.suite = Evaluation(config, self.tokenizer, self.data.tasks)
        self.arms = [ArmRun(self, arm, rate) for arm in config.arms for rate in arm.learning_rates]
        state, items, timing = (self.folder / "base" / name for name in ("state.json", "items.jsonl", "timing.json"))
        if items.is_file() and state.is_file():
            self.suite.restore(read_json(state))
            self.suite.prepare(model, self.precision)
        else:
            self.say("measuring the base model, where no earlier run has ...")
            cache = BaseCache(self.folder.parents[1], model, self.tokenizer, self.precision)
            base = self.suite.measure_base(model, self.precision, cache)
            write_json(state, self.suite.state())
            write_json(timing, {"seconds": base.seconds, "measured": base.measured})
            write_records(items, base.records)
        self.evaluation_seconds = read_json(timing)["seconds"]
        self.base = read_records(items)
        self.again = self._again(model) if config.evaluation.aa_floor else []

    def _again(self, model: PreTrainedModel) -> list[Record]:
        """The base's kept questions with their options in another order, for the A/A floor."""
        path = self.folder / "base" / "again.jsonl"
        if not path.is_file():
            cache = BaseCache(self.folder.parents[1], model, self.tokenizer, self.precision)
            write_records(path, self.suite.reordered().measure_base(model, self.precision, cache).records)
        return read_records(path)

    def _estimate(self) -> None:
        """Time two steps of each arm that still has to run, and say how long the whole will take.

        Not for a study's trials: as a whole they are many, and each is short.
        """
        if self.parent is not None:
            return
        missing = [arm for arm in self.arms if not arm.result_file.is_file()]
        if not missing:
            self.say("all arms are finished already; making the report again (--fresh repeats everything)")
            return
        steps = self.config.training.steps
        probes = {run.arm.name: run.step_seconds() for run in {run.arm.name: run for run in missing}.values()}
        evaluations = -(-steps // self.config.evaluation.every)
        seconds = sum(probes[run.arm.name] * steps + self.evaluation_seconds * evaluations for run in missing)
        each = ", ".join(f"{name} {value:.2f} s" for name, value in probes.items())
        self.say(f"about {seconds / 60:.0f} min for {len(missing)} arms of {steps} steps (one step: {each})")

    def measure(self, model: PreTrainedModel, result: ArmResult, folder: Path) -> None:
        """Evaluate a model as the arms were, fill the result and write it and its records to `folder`."""
        records = self.suite.evaluate(model, self.precision)
        write_records(folder / f"items-{result.steps}.jsonl", records)
        result.scorecard = self.figures(records)
        result.trajectory = [
            {"step": 0, **headline(self.figures(self.base))},
            {"step": result.steps, **headline(result.scorecard)},
        ]
        write_json(folder / "result.json", result.to_dict())

    def figures(self, records: list[Record]) -> dict[str, Estimate]:
        """The scorecard of records against the base's."""
        draws, seed = self.config.evaluation.bootstrap, self.config.seed
        card = scorecard(self.base, records, draws, seed)
        return card | (aa_floor(self.base, self.again, records, draws, seed) if self.again else {})

    def _finish(self, run: Run, results: list[ArmResult]) -> Outcome:
        base = headline(self.figures(self.base))
        command = self.tracker.ui_command()
        details, figures = self._details(results)
        report = write_report(self.folder, self.config, base, results, command, [], details, figures)
        for name in ("report.html", "report.md", "table.csv", "forgetting.png", "config.yaml"):
            run.log_file(self.folder / name)
        run.log_note(markdown_table(results))
        return Outcome(self.folder, results, report, command, self.tracker.run_url(run.id), base)

    def _details(self, results: list[ArmResult]) -> tuple[list[Table], list[tuple[str, Figure]]]:
        """The further tables and pictures of the report, from the records on disk."""
        pairs = list(zip(self.arms, results, strict=True))
        found = {label(result): run.item_files() for run, result in pairs}
        records = {name: {s: read_records(p) for s, p in files.items()} for name, files in found.items() if files}
        drawn = {run.arm.name: run.drawn() for run, result in pairs if result.status == "finished"}
        afterwards = [
            ArmResult.from_dict(read_json(path)) for path in sorted(self.folder.glob("posthoc/*/result.json"))
        ]
        tables = [
            trajectory_table(self.base, records, self.config.evaluation.bootstrap, self.config.seed),
            further_table(results),
            posthoc_table(afterwards),
            data_table(drawn),
            cost_table(results),
        ]
        last = {name: steps[max(steps)] for name, steps in records.items()}
        return [table for table in tables if table], alignment_pictures(last)


def open_run(folder: Path, say: Callable[[str], None] = print, experiment: str | None = None) -> Experiment:
    """A run that is there already, with its data, suite and base records, to measure more models as its arms were.

    experiment: name of the MLflow experiment, if it is not the config's.
    """
    config = load_config(folder / "config.yaml")
    opened = Experiment(config, folder.parent.parent, folder, say, experiment=experiment)
    opened.prepare()
    return opened


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    try:
        with FileLock(f"{folder}.lock", timeout=0):
            yield
    except Timeout:
        raise RunError(f"another process is running {folder.name}: wait for it, or stop it first") from None


def _check_layers(config: ExperimentConfig, model: PreTrainedModel) -> None:
    """Fail before anything is measured if an arm asks for layers or rows that are not there."""
    faults = []
    for arm in config.arms:
        replay = config.data.replay if arm.replay is None else arm.replay
        if arm.build().needs_replay and not (replay and config.data.old):
            faults.append(
                f"arm {arm.name!r}: its options need replayed rows: give data.old, and data.replay or its replay"
            )
        if arm.build().places_layers:
            try:
                place(arm.control.layers, len(decoder_layers(model)))
            except ctrl.ConfigError as error:
                faults.append(f"arm {arm.name!r}: {error}")
    if faults:
        raise ConfigError("\n".join(faults))
