"""Run an experiment: base evaluated once, every arm trained and evaluated on the same data, report at the end.

All state lies in `mlruns/runs/<name>-<digest>/`; the same config continues there: finished arms are read, not run
again, and a half-run arm resumes from its last whole checkpoint.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from filelock import FileLock, Timeout
from matplotlib.figure import Figure
from transformers import PreTrainedModel

import ctrl
from ctrl.structure import decoder_layers, place
from experiments.config import ArmConfig, ConfigError, ExperimentConfig, load_config
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
from experiments.methods import Setting
from experiments.models import Precision, load_base
from experiments.records import ArmResult, Estimate, Record, read_records, write_json, write_records, write_text
from experiments.report import markdown_table, write_report
from experiments.scorecard import aa_floor, scorecard
from experiments.scorecard.card import GAINS
from experiments.summary import gain_name, gain_text, label, with_interval
from experiments.tracking.tracking import Run, Tracker
from experiments.train import ArmFailed, disk_full, last_checkpoint, only_label_logits, train_arm

HEADLINE = ("gain", "new_nll_drop", "retention", "nfr", "kl", "perplexity_drift", "new_accuracy", "kept_accuracy")


Observer = Callable[[str, int, dict[str, Estimate]], None]  # gets the arm's label, the step and the figures


class StopArm(Exception):
    """Raised by an observer: the arm ends here with status `pruned` and keeps what it has recorded."""


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
        self.cells = [(arm, lr) for arm in config.arms for lr in arm.learning_rates]

    def run(self) -> Outcome:
        config = self.config
        write_text(self.folder / "config.yaml", yaml.safe_dump(config.to_dict(), sort_keys=False))
        precision = f"{self.precision.name} ({self.precision.reason})"
        self.say(f"{config.name}: {config.base_model}, {precision}, {len(self.cells)} arms")
        self.tracker.reap()
        saved = _read_json(self.folder / "mlflow.json")
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
            self._prepare()
            run.log_inputs(
                [
                    {**one, "source": one["kind"], "kind": "replay" if one["replayed"] else "training"}
                    for one in self.data.describe()
                ]
            )
            self._estimate()
            results = [self._arm(arm, lr, run) for arm, lr in self.cells]
            return self._finish(run, results)

    def _prepare(self) -> None:
        """Data, suites and the base model's own records."""
        config = self.config
        model, self.tokenizer = load_base(config.base_model)
        _check_layers(config, model)

        def writer() -> PreTrainedModel:
            self.say("the base model writes the text of the source `self` (once) ...")
            return model

        self.data = ExperimentData(config, self.tokenizer, writer, self.folder.parents[1] / "cache")
        self.suite = Evaluation(config, self.tokenizer, self.data.tasks)
        state, items, timing = (self.folder / "base" / name for name in ("state.json", "items.jsonl", "timing.json"))
        if items.is_file() and state.is_file():
            self.suite.restore(_read_json(state))
            self.suite.prepare(model, self.precision)
        else:
            self.say("measuring the base model, where no earlier run has ...")
            cache = BaseCache(self.folder.parents[1], model, self.tokenizer, self.precision)
            base = self.suite.measure_base(model, self.precision, cache)
            write_json(state, self.suite.state())
            write_json(timing, {"seconds": base.seconds, "measured": base.measured})
            write_records(items, base.records)
        self.evaluation_seconds = _read_json(timing)["seconds"]
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
        """Time two steps of each arm that still has to run, and say how long the whole will take."""
        missing = [(arm, lr) for arm, lr in self.cells if not self._result_file(arm, lr).is_file()]
        if not missing:
            self.say("all arms are finished already; making the report again (--fresh repeats everything)")
            return
        steps = self.config.training.steps
        probes = {arm.name: self._probe(arm) for arm in {arm.name: arm for arm, _ in missing}.values()}
        evaluations = -(-steps // self.config.evaluation.every)
        seconds = sum(probes[arm.name] * steps + self.evaluation_seconds * evaluations for arm, _ in missing)
        each = ", ".join(f"{name} {value:.2f} s" for name, value in probes.items())
        self.say(f"about {seconds / 60:.0f} min for {len(missing)} arms of {steps} steps (one step: {each})")

    def _probe(self, arm: ArmConfig) -> float:
        method, setting = arm.build(), self._setting(arm)
        model = method.prepare(load_base(self.config.base_model)[0], setting).train()
        self.precision.hold_frozen(model)
        method.begin(model, setting)
        training = self.config.training
        rows = self.data.rows(arm)
        batch = self.data.collator([rows[i] for i in range(min(training.batch_size, len(rows)))])
        batch = {k: v.to(model.device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
        marked = only_label_logits(batch)
        inputs = {k: v for k, v in marked.items() if k != "replayed"}
        times = []
        for _ in range(3):
            start = time.perf_counter()
            with self.precision.autocast():
                out = model(**inputs)
            penalty = method.penalty(model, marked, out, None)
            (out.loss if penalty is None else out.loss + penalty).backward()
            times.append(time.perf_counter() - start)
        return min(times) * training.gradient_accumulation

    def _setting(self, arm: ArmConfig) -> Setting:
        return Setting(arm, self.config.seed, self.precision, self.data.old_batches)

    def _arm(self, arm: ArmConfig, lr: float, parent: Run) -> ArmResult:
        """Train and evaluate one arm at one learning rate, or read its result. A failing arm does not stop others."""
        path = self._result_file(arm, lr)
        if path.is_file():
            return ArmResult.from_dict(_read_json(path))
        saved = _read_json(path.parent / "mlflow.json")
        result = ArmResult(arm.name, arm.method, lr, "finished")
        checkpoint = last_checkpoint(path.parent / "checkpoints")
        self.say(f"{result.label}" + (f": continues from {Path(checkpoint).name}" if checkpoint else ""))
        start = time.perf_counter()
        with self.tracker.run(
            result.label,
            kind="arm",
            parent=parent.id,
            run_id=saved.get("run_id"),
            params=_arm_params(arm, lr),
            folder=path.parent,
        ) as run:
            write_json(path.parent / "mlflow.json", {"run_id": run.id})
            try:
                self._train(arm, lr, result, run)
            except StopArm as stop:
                result.status, result.reason = "pruned", str(stop)
            except Exception as error:
                if disk_full(error):
                    raise
                result.status, result.reason = "failed", _reason(error)
                run.fail(result.reason)
                self.say(f"  failed: {result.reason}")
            self._score(arm, lr, result, run)
            write_json(path, result.to_dict())
            run.log_file(path, "scorecard")
            if not result.reason:
                gain = gain_text(result.scorecard, gain_name([result]))
                retention = with_interval(result.scorecard.get("retention"))
                self.say(f"  gain {gain}, retention {retention}, {time.perf_counter() - start:.0f} s")
            for point in result.trajectory:  # the parent's charts would be empty otherwise
                figures = {k: v.value for k, v in point.items() if k in (*GAINS, "retention")}
                parent.log_metrics({f"{k}/{result.label}": v for k, v in figures.items()}, point["step"])
        return result

    def _train(self, arm: ArmConfig, lr: float, result: ArmResult, run: Run) -> None:
        folder = self._arm_folder(arm, lr)
        method, setting = arm.build(), self._setting(arm)
        base = load_base(self.config.base_model)[0]
        base_parameters = base.num_parameters()
        model = method.prepare(base, setting)
        added = sum(p.numel() for p in model.parameters()) - base_parameters

        def measure(step: int, model: PreTrainedModel) -> None:
            records = self.suite.evaluate(model, self.precision)
            write_records(folder / f"items-{step}.jsonl", records)
            figures = self._figures(records)
            run.log_metrics({name: figures[name].value for name in HEADLINE if name in figures}, step)
            if self.observe:
                self.observe(result.label, step, figures)

        result.cost = train_arm(
            self.config,
            setting,
            method,
            lr,
            model,
            self.data.rows(arm),
            self.data.collator,
            folder / "checkpoints",
            measure,
            run.log_metrics_at,
        )
        result.cost["added_parameters"] = float(added)
        with method.evaluated(model):
            method.save(model, folder / "trained")
        run.log_model(folder / "trained")
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)

    def _score(self, arm: ArmConfig, lr: float, result: ArmResult, run: Run) -> None:
        """Figures from the records on disk, so that a resumed or failed arm has all that was measured."""
        folder = self._arm_folder(arm, lr)
        files = _item_files(folder)
        result.trajectory = [{"step": 0, **self._headline(self.base)}]
        for step in files:
            result.trajectory.append({"step": step, **self._headline(read_records(files[step]))})
            run.log_file(files[step], "records")
        if files:
            result.steps = max(files)
            result.scorecard = self._figures(read_records(files[result.steps]))
        if result.cost:
            drawn = self._drawn(arm, lr)
            result.cost["replayed_tokens"] = float(sum(part["tokens"] for part in drawn if part["replayed"]))
        run.log_metrics({f"cost/{k}": v for k, v in result.cost.items()}, result.steps)

    def measure(self, model: PreTrainedModel, result: ArmResult, folder: Path) -> None:
        """Evaluate a model as the arms were, fill the result and write it and its records to `folder`."""
        records = self.suite.evaluate(model, self.precision)
        write_records(folder / f"items-{result.steps}.jsonl", records)
        result.scorecard = self._figures(records)
        result.trajectory = [
            {"step": 0, **self._headline(self.base)},
            {"step": result.steps, **self._headline(records)},
        ]
        write_json(folder / "result.json", result.to_dict())

    def _figures(self, records: list[Record]) -> dict[str, Any]:
        draws, seed = self.config.evaluation.bootstrap, self.config.seed
        card = scorecard(self.base, records, draws, seed)
        return card | (aa_floor(self.base, self.again, records, draws, seed) if self.again else {})

    def _headline(self, records: list[Record]) -> dict[str, Any]:
        figures = self._figures(records)
        return {name: figures[name] for name in HEADLINE if name in figures}

    def _finish(self, run: Run, results: list[ArmResult]) -> Outcome:
        base = self._headline(self.base)
        command = self.tracker.ui_command()
        details, figures = self._details(results)
        report = write_report(self.folder, self.config, base, results, command, [], details, figures)
        for name in ("report.html", "report.md", "table.csv", "forgetting.png", "config.yaml"):
            run.log_file(self.folder / name)
        run.log_note(markdown_table(results))
        return Outcome(self.folder, results, report, command, self.tracker.run_url(run.id), base)

    def _details(self, results: list[ArmResult]) -> tuple[list[Table], list[tuple[str, Figure]]]:
        """The further tables and pictures of the report, from the records on disk."""
        found = {
            label(r): _item_files(self._arm_folder(arm, lr)) for (arm, lr), r in zip(self.cells, results, strict=True)
        }
        records = {name: {s: read_records(p) for s, p in files.items()} for name, files in found.items() if files}
        drawn = {
            arm.name: self._drawn(arm, lr)
            for (arm, lr), r in zip(self.cells, results, strict=True)
            if r.status == "finished"
        }
        afterwards = [
            ArmResult.from_dict(_read_json(path)) for path in sorted(self.folder.glob("posthoc/*/result.json"))
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

    def _drawn(self, arm: ArmConfig, lr: float) -> list[dict[str, Any]]:
        """What the arm's rows took from each source; kept in data.json, since all rows are read for it."""
        path = self._arm_folder(arm, lr) / "data.json"
        if not path.is_file():
            write_json(path, {"drawn": self.data.drawn(arm)})
        drawn: list[dict[str, Any]] = _read_json(path)["drawn"]
        return drawn

    def _arm_folder(self, arm: ArmConfig, lr: float) -> Path:
        return self.folder / "arms" / f"{arm.name}-{lr:g}"

    def _result_file(self, arm: ArmConfig, lr: float) -> Path:
        return self._arm_folder(arm, lr) / "result.json"


def open_run(folder: Path, say: Callable[[str], None] = print, experiment: str | None = None) -> Experiment:
    """A run that is there already, with its data, suite and base records, to measure more models as its arms were.

    experiment: name of the MLflow experiment, if it is not the config's.
    """
    config = load_config(folder / "config.yaml")
    opened = Experiment(config, folder.parent.parent, folder, say, experiment=experiment)
    opened._prepare()
    return opened


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    try:
        with FileLock(f"{folder}.lock", timeout=0):
            yield
    except Timeout:
        raise RunError(f"another process is running {folder.name}: wait for it, or stop it first") from None


def _item_files(folder: Path) -> dict[int, Path]:
    """The record files of an arm by step, in order."""
    files = {int(p.stem.removeprefix("items-")): p for p in folder.glob("items-*.jsonl")}
    return dict(sorted(files.items()))


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


def _arm_params(arm: ArmConfig, lr: float) -> dict[str, Any]:
    params = {"arm": arm.name, "method": arm.method, "learning_rate": lr, "control": arm.control.to_dict()}
    return {**params, "options": arm.build().model_dump(mode="json"), "replay": arm.replay}


def _reason(error: BaseException) -> str:
    if isinstance(error, ArmFailed):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError):
        return "out of GPU memory: lower training.batch_size and raise training.gradient_accumulation"
    return f"{type(error).__name__}: {error}"


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
