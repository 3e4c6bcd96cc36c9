"""An experiment in stages: data and base records, one arm after the other, report. Each reads what is on disk.

`experiments.runs.run` runs and opens experiments.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from transformers import PreTrainedModel

from experiments.common.errors import ConfigError
from experiments.common.files import read_json, write_json, write_text
from experiments.config import ArmConfig, ExperimentConfig
from experiments.evaluation.cache import BaseCache
from experiments.evaluation.evaluate import Evaluation
from experiments.models.base import load_base
from experiments.models.precision import Precision
from experiments.records import ArmResult, Estimate, Record, read_records, write_records
from experiments.reporting.page import image_bytes
from experiments.reporting.report import write_report
from experiments.reporting.run_details import RunRecords, read_steps
from experiments.reporting.tables import arms_table
from experiments.reporting.text import label
from experiments.runs.arm import ArmRun, Observer, headline
from experiments.runs.checks import check_run
from experiments.runs.data import ExperimentData
from experiments.scorecard import aa_floor, scorecard
from experiments.tracking.run import Run
from experiments.tracking.tracker import Tracker
from experiments.training.processes import ALONE, Processes

TIMED = 10  # steps; arms of fewer are trained in the time that timing them takes


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
        processes: Processes = ALONE,
    ) -> None:
        self.processes = processes
        self.config, self.folder, self.say, self.parent, self.observe = config, folder, say, parent, observe
        self.precision = Precision(config.precision)
        self._tracker = (root, experiment or config.name)

    @cached_property
    def tracker(self) -> Tracker:
        """Made where it is needed: by the process that records."""
        return Tracker(*self._tracker)

    def run(self) -> Outcome:
        config = self.config
        write_text(self.folder / "config.yaml", yaml.safe_dump(config.to_dict(), sort_keys=False))
        precision = f"{self.precision.name} ({self.precision.reason})"
        count = sum(len(arm.learning_rates) for arm in config.arms)
        together = f", {self.processes.count} processes" if self.processes.count > 1 else ""
        self.say(f"{config.name}: {config.base_model}, {precision}, {count} arms{together}")
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
            run.log_file(self.folder / "config.yaml")
            self.prepare()
            self.processes.told("prepared")
            run.log_inputs(self.inputs())
            self._estimate()
            results = [arm.run(run) for arm in self.arms]
            outcome: Outcome = self.processes.told(self._finish(run, results))
            return outcome

    def follow(self) -> Outcome:
        """What the processes beside the first do: train with it, arm after arm. Returns the outcome that it has."""
        self.processes.told()  # only now are the data and the base's records on disk
        self.prepare()
        while not isinstance(told := self.processes.told(), Outcome):
            self.arms[told].follow()
        return told

    def prepare(self) -> None:
        """Data, suites and the base model's own records."""
        config = self.config
        model, self.tokenizer = load_base(config.base_model, config.data.system)
        check_run(config, model)

        def writer() -> PreTrainedModel:
            self.say("the base model writes the text of the source `self` (once) ...")
            return model

        self.data = ExperimentData(config, self.tokenizer, writer, self.folder.parents[1] / "cache")
        self._same_data()
        self.suite = Evaluation(config, self.tokenizer, self.data.tasks)
        self.arms = [ArmRun(self, arm, rate) for arm in config.arms for rate in arm.learning_rates]
        cache = BaseCache(self.folder.parents[1], model, self.tokenizer, self.precision)
        state, items, timing = (self.folder / "base" / name for name in ("state.json", "items.jsonl", "timing.json"))
        if items.is_file() and state.is_file():
            self.suite.restore(read_json(state))
            self.suite.prepare(model, self.precision, cache)
        else:
            self.say("measuring the base model, where no earlier run has ...")
            base = self.suite.measure_base(model, self.precision, cache)
            write_json(state, self.suite.state())
            write_json(timing, {"seconds": base.seconds, "measured": base.measured})
            write_records(items, base.records)
        self.evaluation_seconds = read_json(timing)["seconds"]
        self.base = read_records(items)
        self.again = self._again(model) if config.evaluation.has_floor else []

    def inputs(self, arm: ArmConfig | None = None) -> list[dict[str, Any]]:
        """The sources as the inputs of an MLflow run: the experiment's, or those that an arm reads."""
        return [
            {**one, "source": one["kind"], "kind": "replay" if one["replayed"] else "training"}
            for one in self.data.describe(arm)
            if one["share"] or arm is None
        ]

    def _same_data(self) -> None:
        """Raise ConfigError where a source holds something else than when this run began."""
        digests = {f"{i} {one['name']}": one["digest"] for i, one in enumerate(self.data.describe())}
        path = self.folder / "sources.json"
        known = read_json(path)
        changed = [name.split(" ", 1)[1] for name in digests if known.get(name, digests[name]) != digests[name]]
        if changed:
            raise ConfigError(
                f"{', '.join(changed)} has changed since {self.folder.name} began, so its arms would not compare: "
                "bring the old data back, or start anew with --fresh"
            )
        if not known:
            write_json(path, digests)

    def _again(self, model: PreTrainedModel) -> list[Record]:
        """The base's answers to the kept questions in other words, for the A/A floor."""
        path = self.folder / "base" / "reworded.jsonl"
        if not path.is_file():
            cache = BaseCache(self.folder.parents[1], model, self.tokenizer, self.precision)
            write_records(path, self.suite.reworded().measure_base(model, self.precision, cache).records)
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
            for arm in self.arms:
                if read_json(arm.result_file)["status"] == "failed":
                    self.say(f"{arm.folder.name} failed; to go on from its last checkpoint, delete {arm.result_file}")
            return
        steps = self.config.training.steps
        if steps < TIMED:
            return
        try:
            probes = {run.arm.name: run.step_seconds() for run in {run.arm.name: run for run in missing}.values()}
        except Exception as error:  # the arm will say it again, and the others run
            self.say(f"the time cannot be estimated ({type(error).__name__}: {error})")
            return
        evaluations = len(self.config.evaluation_steps)
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
        pairs = list(zip(self.arms, results, strict=True))
        files = {label(result): arm.item_files() for arm, result in pairs}
        drawn = {arm.arm.name: arm.drawn() for arm, result in pairs if result.status == "finished"}
        measured = RunRecords(self.config, self.base, results, {name: read_steps(f) for name, f in files.items() if f})
        afterwards = [
            ArmResult.from_dict(read_json(path)) for path in sorted(self.folder.glob("posthoc/*/result.json"))
        ]
        figures = measured.pictures()
        report = write_report(
            self.folder, self.config, base, results, command,
            details=measured.tables(drawn, afterwards), figures=figures, significant=measured.significant_pairs(),
        )  # fmt: skip
        for title, picture in figures:
            name = f"{title.lower().replace(' ', '-')}.png"
            (self.folder / name).write_bytes(image_bytes(picture, "png"))
            run.log_file(self.folder / name)
        for name in ("report.html", "report.md", "table.csv", "forgetting.png"):
            run.log_file(self.folder / name)
        run.log_note(arms_table(results).markdown())
        return Outcome(self.folder, results, report, command, self.tracker.run_url(run.id), base)
