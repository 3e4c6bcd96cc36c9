"""One arm of an experiment at one learning rate: trained, evaluated on the way and scored, or read from disk."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel

from ctrl.sharded import sharded
from experiments.common.files import read_json, write_json
from experiments.config import ArmConfig
from experiments.evaluation.evaluate import NotFinite
from experiments.methods import Method, MethodContext
from experiments.models.base import load_base
from experiments.records import ArmResult, Estimate, read_records, write_records
from experiments.reporting.stream import stream_card
from experiments.reporting.text import gain_name, gain_text, with_interval
from experiments.scorecard.card import GAINS
from experiments.tracking.journal import find
from experiments.tracking.run import Run
from experiments.training.callbacks import Measure
from experiments.training.checkpoints import disk_full, last_checkpoint
from experiments.training.lm_loss import lm_loss, only_label_logits
from experiments.training.processes import FirstFailed, LaunchEnded, OtherLaunch
from experiments.training.train import train_arm
from experiments.training.trainer import ArmFailed

if TYPE_CHECKING:
    from experiments.runs.experiment import Experiment

HEADLINE = ("gain", "new_nll_drop", "retention", "nfr", "kl", "perplexity_drift", "new_accuracy", "kept_accuracy")
KNOWN_TO_ALL = (ArmFailed, FirstFailed, NotFinite)  # errors that every process of a run meets at the same place
Observer = Callable[[str, int, dict[str, Estimate]], None]  # gets the arm's label, the step and the figures


class StopArm(Exception):
    """Raised by an observer: the arm ends here with status `pruned` and keeps what it has recorded."""


class ArmRun:
    """An arm's folder `arms/<name>-<learning rate>/` and what fills it."""

    def __init__(self, experiment: Experiment, arm: ArmConfig, learning_rate: float) -> None:
        self.experiment, self.arm, self.learning_rate = experiment, arm, learning_rate
        self.folder = experiment.folder / "arms" / f"{arm.name}-{learning_rate:g}"
        self.result_file = self.folder / "result.json"
        self.setting = MethodContext(experiment.config.seed, experiment.precision, experiment.data.old_batches)

    def step_seconds(self) -> float:
        """How long one optimiser step takes, from three forward and backward passes on the first batch."""
        experiment, method = self.experiment, self.arm.build()
        model = method.prepare(load_base(experiment.config.base_model)[0], self.setting).train()
        experiment.precision.hold_frozen(model)
        method.begin(model, self.setting)
        training = experiment.config.training
        rows = experiment.data.rows(self.arm)
        size = experiment.processes.part(training.batch_size)
        batch = experiment.data.collator([rows[i] for i in range(min(size, len(rows)))])
        batch = {k: v.to(model.device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
        marked = only_label_logits(batch)
        inputs = {k: v for k, v in marked.items() if k != "replayed"}
        with experiment.precision.autocast():
            loss = lm_loss(model, method.reads_logits, method.token_weights)
        times = []
        for _ in range(3):
            start = time.perf_counter()
            with experiment.precision.autocast(), loss():
                out = model(**inputs)
            penalty = method.penalty(model, marked, out, None)
            (out.loss if penalty is None else out.loss + penalty).backward()
            times.append(time.perf_counter() - start)
        return min(times) * training.gradient_accumulation

    def run(self, parent: Run) -> ArmResult:
        """Train and evaluate, or read the result that is there. A failing arm does not stop others."""
        saved = read_json(self.folder / "mlflow.json")
        result = ArmResult(self.arm.name, self.arm.method_name, self.learning_rate, "finished")
        if self.result_file.is_file():
            result = ArmResult.from_dict(read_json(self.result_file))
            if self._told(saved.get("run_id")):
                return result
        with self.experiment.tracker.run(
            result.label,
            kind="arm",
            parent=parent.id,
            run_id=saved.get("run_id"),
            params=self._params(),
            folder=self.folder,
        ) as run:
            write_json(self.folder / "mlflow.json", {"run_id": run.id})
            run.log_file(self.experiment.folder / "config.yaml")
            run.log_inputs(self.experiment.inputs(self.arm))
            if not self.result_file.is_file():
                self._fill(result, run)
            elif result.status == "failed":
                run.fail(str(result.reason))
            self._close(result, run, parent)
        return result

    def _told(self, run_id: str | None) -> bool:
        """Whether the MLflow run of a result came to its own end; a process may have died between the two."""
        journal = find(self.folder, run_id) if run_id else None
        end = journal.last("end") if journal else None
        return journal is None or (end is not None and end["status"] != "KILLED" and journal.ended())

    def _fill(self, result: ArmResult, run: Run) -> None:
        say, start = self.experiment.say, time.perf_counter()
        checkpoint = last_checkpoint(self.folder / "checkpoints")
        say(f"{result.label}" + (f": continues from {Path(checkpoint).name}" if checkpoint else ""))
        self._guarded(self._train, result, run)
        self._guarded(self._score, result, run)
        write_json(self.result_file, result.to_dict())
        if not result.reason:
            gain = gain_text(result.scorecard, gain_name([result]))
            retention = with_interval(result.scorecard.get("retention"))
            say(f"  gain {gain}, retention {retention}, {time.perf_counter() - start:.0f} s")

    def _close(self, result: ArmResult, run: Run, parent: Run) -> None:
        """What follows a result, also where the process that wrote it died before this."""
        # Only now: without a result the arm goes on from its checkpoint. One that failed can be continued by hand, but
        # not in a study, which never comes back to a trial that failed with a reason.
        if result.status != "failed" or self.experiment.parent is not None:
            shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)
        run.log_file(self.result_file, "scorecard")
        for point in result.trajectory:  # the parent's charts would be empty otherwise
            figures = {k: v.value for k, v in point.items() if k in (*GAINS, "retention")}
            parent.log_metrics({f"{k}/{result.label}": v for k, v in figures.items()}, point["step"])

    def _guarded(self, work: Callable[[ArmResult, Run], None], result: ArmResult, run: Run) -> None:
        """Do the work; an error is the arm's status and reason (the first one stays). A full disk stops the run."""
        try:
            work(result, run)
        except StopArm as stop:
            result.status, result.reason = "pruned", str(stop)
        except Exception as error:
            if disk_full(error) or isinstance(error, LaunchEnded | OtherLaunch):
                raise
            reason = _reason(error)
            if not result.reason:
                result.status, result.reason = "failed", reason
                run.fail(reason)
            self.experiment.say(f"  failed: {reason}")

    def follow(self) -> None:
        """Train beside the first process, which records. Of a model in shards, all have to measure."""

        def measure(step: int, model: PreTrainedModel) -> None:
            self.experiment.suite.evaluate(model, self.experiment.precision, progress=False)

        with suppress(*KNOWN_TO_ALL):  # the first one notes it and goes on to the next arm
            self._together(measure, lambda step, logs: None)

    def _train(self, result: ArmResult, run: Run) -> None:
        experiment, folder = self.experiment, self.folder
        experiment.processes.told(experiment.arms.index(self))

        def measure(step: int, model: PreTrainedModel) -> None:
            records = experiment.suite.evaluate(model, experiment.precision)
            write_records(folder / f"items-{step}.jsonl", records)
            figures = experiment.figures(records)
            run.log_metrics({name: figures[name].value for name in HEADLINE if name in figures}, step)
            if experiment.observe:
                experiment.observe(result.label, step, figures)

        result.cost = self._together(measure, run.log_metrics_at)
        step = max(self.item_files(), default=0)
        run.log_model(folder / "trained", self.arm.name, self._model_params(), HEADLINE, step)

    def _together(self, measure: Measure, on_log: Callable[[int, dict[str, float]], None]) -> dict[str, float]:
        """`_optimise`. Of several processes, one that meets an error of its own ends the launch (LaunchEnded)."""
        try:
            return self._optimise(measure, on_log)
        except (*KNOWN_TO_ALL, OtherLaunch):
            raise
        except Exception as error:
            if self.experiment.processes.count == 1:
                raise
            raise LaunchEnded(f"{self.folder.name}: {_reason(error)}") from error

    def _optimise(self, measure: Measure, on_log: Callable[[int, dict[str, float]], None]) -> dict[str, float]:
        """Prepare the model, train it and keep it: what every process of the run does. Returns the cost."""
        experiment, folder, method = self.experiment, self.folder, self.arm.build()
        base = load_base(experiment.config.base_model)[0]
        base_parameters = base.num_parameters()
        model = method.prepare(base, self.setting)
        added = sum(p.numel() for p in model.parameters()) - base_parameters
        cost = train_arm(
            experiment.config,
            self.setting,
            method,
            self.learning_rate,
            model,
            experiment.data.rows(self.arm),
            experiment.data.collator,
            folder / "checkpoints",
            measure,
            on_log,
            experiment.processes,
        )
        with method.evaluated(model):
            experiment.processes.lead(lambda: self._keep(method, model), together=sharded(model))
        return {**cost, "added_parameters": float(added)}

    def _keep(self, method: Method, model: PreTrainedModel) -> None:
        method.save(model, self.folder / "trained")

    def _score(self, result: ArmResult, run: Run) -> None:
        """Figures from the records on disk, so that a resumed or failed arm has all that was measured."""
        experiment, files = self.experiment, self.item_files()
        records = {step: read_records(file) for step, file in files.items()}
        result.trajectory = [{"step": 0, **headline(experiment.figures(experiment.base))}]
        for step in files:
            result.trajectory.append({"step": step, **headline(experiment.figures(records[step]))})
            run.log_file(files[step], "records")
        if files:
            result.steps = max(files)
            result.scorecard = experiment.figures(records[result.steps])
            streamed = stream_card(experiment.config, experiment.base, records)
            result.scorecard |= streamed
            run.log_metrics({name: figure.value for name, figure in streamed.items()}, result.steps)
        if result.cost:
            drawn = self.drawn()
            result.cost["replayed_tokens"] = float(sum(part["tokens"] for part in drawn if part["replayed"]))
        run.log_metrics({f"cost/{k}": v for k, v in result.cost.items()}, result.steps)

    def drawn(self) -> list[dict[str, Any]]:
        """What the arm's rows took from each source; kept in data.json, since all rows are read for it."""
        path = self.folder / "data.json"
        if not path.is_file():
            write_json(path, {"drawn": self.experiment.data.drawn(self.arm)})
        drawn: list[dict[str, Any]] = read_json(path)["drawn"]
        return drawn

    def item_files(self) -> dict[int, Path]:
        """The files of item records by step, in order."""
        files = {int(p.stem.removeprefix("items-")): p for p in self.folder.glob("items-*.jsonl")}
        return dict(sorted(files.items()))

    def _params(self) -> dict[str, Any]:
        arm, config = self.arm, self.experiment.config.to_dict()
        params = {"arm": arm.name, "method": arm.method_name, "learning_rate": self.learning_rate}
        shared = {name: config[name] for name in ("base_model", "precision", "seed", "training")}
        return {**params, **shared, **arm.params(), "replay": arm.replay}

    def _model_params(self) -> dict[str, Any]:
        base = self.experiment.config.base_model
        return {"base_model": base, "method": self.arm.method_name, "learning_rate": self.learning_rate}


def headline(figures: dict[str, Estimate]) -> dict[str, Estimate]:
    return {name: figures[name] for name in HEADLINE if name in figures}


def _reason(error: BaseException) -> str:
    if isinstance(error, ArmFailed | FirstFailed):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError):
        return "out of GPU memory: lower training.batch_size and raise training.gradient_accumulation"
    return f"{type(error).__name__}: {error}"
