"""One measurement in its folder: the base model measured once, then each model, one at a time in memory."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from experiments.common.errors import ConfigError
from experiments.common.files import read_json, read_note, remove, write_json
from experiments.common.printable import escaped
from experiments.common.progress import progress
from experiments.comparison.configs import MODEL
from experiments.comparison.folders import without
from experiments.data.items import NewTask, NewText
from experiments.evaluation.config import EvaluationConfig
from experiments.evaluation.evaluate import Suites
from experiments.evaluation.suite import SuiteContext
from experiments.measure.base import Base
from experiments.measure.config import MeasureConfig
from experiments.measure.endpoint import Endpoint
from experiments.measure.files import stamp
from experiments.measure.kinds import check_base_fingerprint
from experiments.measure.models import Checkpoint, Model, distributions, is_of, noted_facts
from experiments.measure.replies import Replies, changed_replies
from experiments.models.base import load_base
from experiments.models.precision import Precision
from experiments.posthoc.tracked import cut_off
from experiments.records import MEASURED, ArmResult, Record, read_records
from experiments.reporting.tables import arms_table
from experiments.reporting.text import interval_tags
from experiments.runs.arm_records import is_whole, write_noted
from experiments.runs.base_records import ITEMS, REWORDED
from experiments.runs.base_records import is_whole as whole_base
from experiments.runs.baseline import MeasuredBase, headline, measure_base, remarks_on, score
from experiments.runs.checks import beyond_training, check_suites
from experiments.runs.result_file import RESULT, read_result, whole_results, write_result
from experiments.tracking.run import Run
from experiments.tracking.tracker import Tracker

REPLIES = "replies.jsonl"  # of a model on a server


@dataclass(frozen=True, eq=False)
class Session:
    """What all models of a measurement share.

    tokenizer: of the base. task: the new one, or nothing. suites: of the config, with their items drawn. base_stamp: of
    the base's files at the start.
    """

    config: MeasureConfig
    base: Base
    tokenizer: PreTrainedTokenizerBase
    task: tuple[NewTask | NewText, ...]
    suites: Suites
    root: Path
    folder: Path
    tracker: Tracker
    say: Callable[[str], None] = print
    base_stamp: str = ""

    @property
    def arithmetic(self) -> str:
        """How base and models are computed: `auto` takes what is faster, and KL in bf16 is another one than in fp32."""
        return f"Measured in {Precision(self.config.precision)}."

    @cached_property
    def measured(self) -> MeasuredBase:
        """The base model's records; it is loaded for them, and not kept."""
        model, tokenizer = load_base(str(self.base.folder), **self.base.loading)
        check_suites(self.base.name, model, self.suites)
        for line in beyond_training(self.base.name, model, self.suites):
            self.say(line)
        evaluation, seed, precision = self.config.evaluation, self.config.seed, Precision(self.config.precision)
        found = measure_base(
            evaluation, self.suites, model, tokenizer, precision, self.root, self.folder, seed, self.say
        )
        del model
        _free()
        _ = found.checked
        return found

    def check_fingerprints(self, models: list[Model]) -> None:
        """Raise ConfigError for an expansion of other weights than the base's, before anything is measured."""
        found = [c for model in models for c in model.checkpoints if c.kind.name == "folder of ctrl.save"]
        if not found or all(self.is_finished(model) for model in models):
            return
        loaded = self.base.load()
        for one in found:
            check_base_fingerprint(one.folder, loaded, self.base)

    def base_records(self) -> list[Record]:
        return read_records(self.folder / "base" / ITEMS)

    def remarks(self) -> list[str]:
        """Return what a reader must know of the base's answers, for a report: a later call does not measure it."""
        return remarks_on(self.base_records(), self.suites, self.tokenizer)

    def floor_records(self) -> list[Record]:
        """Return the base's answers in other words, made again if they are not as they were written."""
        file = self.folder / "base" / REWORDED
        if self.config.evaluation.has_floor and not whole_base(file):
            _ = self.measured
        return read_records(file) if file.is_file() else []

    def is_finished(self, model: Model) -> bool:
        """Whether the model's result is on disk, of the files that it has now."""
        folder = self.arm(model)
        known = read_json(folder / MODEL)
        return bool(known) and is_of(known, model) and (folder / RESULT).is_file() and not cut_off(folder)

    def arm(self, model: Model) -> Path:
        return self.arm_folder(model.name)

    def arm_folder(self, name: str) -> Path:
        return self.folder / "arms" / name

    def measure(self, model: Model) -> ArmResult:
        """Measure a model at each checkpoint, or read what is on disk of it."""
        folder = self.arm(model)
        if model.endpoint:
            self._ask_again(model, model.endpoint)
        if not self.is_finished(model):
            self._begin(model)
            with self._tracked(model) as run:
                if model.endpoint:
                    self._measure_endpoint(model, model.endpoint)
                for one in model.checkpoints:
                    self._measure_checkpoint(model, one)
                self._check_unchanged(model)
                write_result(folder, self._result(model))
                self._log(run, model)
        return whole_results([folder / RESULT])[0]

    def _ask_again(self, model: Model, endpoint: Endpoint) -> None:
        """Drop what was measured if the server has another model by now; say so if a few replies alone are others."""
        changed, asked = changed_replies(endpoint, self.arm(model) / REPLIES)
        if 2 * changed > asked:
            self.say(f"{model.name}: the server gives other replies than before ({changed} of {asked}): measured again")
            remove(self.arm(model), self.folder / "removed")
        elif changed:
            self.say(
                f"warning: {model.name}: {changed} of {asked} replies are others than before. If the server has "
                f"another model, delete {self.arm(model)}, and it is measured again"
            )

    def _begin(self, model: Model) -> None:
        """Drop what was measured of other files under this name."""
        note = self.arm(model) / MODEL
        if note.is_file() and not is_of(read_json(note), model):
            self.say(f"{model.name} is another model than before, or its files have changed: it is measured again")
            remove(self.arm(model), self.folder / "removed")
        write_json(note, noted_facts(model))

    def _check_unchanged(self, model: Model) -> None:
        """Raise ConfigError if files changed while they were measured: a trainer may still write to the folder."""
        same = is_of(read_json(self.arm(model) / MODEL), model)
        if same and self.base_stamp in ("", stamp(self.base.folder)):
            return
        for file in self.arm(model).glob("items-*.jsonl"):
            file.unlink()
        raise ConfigError(
            f"the files of {self.base.name if same else model.address} changed while {model.name} was measured, so its "
            "figures are dropped: give the same command again when nobody writes there"
        )

    def _measure_checkpoint(self, model: Model, one: Checkpoint) -> None:
        file = self.arm(model) / f"items-{one.step}.jsonl"
        if is_whole(file):
            return
        measured = self.measured  # before the model is loaded: one at a time in memory
        step = f" at step {one.step}" if len(model.checkpoints) > 1 else ""
        self.say(f"{model.name}{step} ({one.kind.name}) ...")
        loaded = one.kind.load(one.folder, self.base)
        write_noted(file, self._records(measured, model, loaded))
        del loaded
        _free()

    def _measure_endpoint(self, model: Model, endpoint: Endpoint) -> None:
        """Ask the questions of the suites that replies alone can answer."""
        file = self.arm(model) / "items-1.jsonl"
        if is_whole(file):
            return
        self.base_measured()
        self.say(f"{model.name} (endpoint) ...")
        asked = [suite for name, suite in self.suites.suites.items() if name not in model.left_out]
        with progress("ask", sum(suite.replies for suite in asked), "reply") as task:
            replies = Replies.read(endpoint, self.arm(model) / REPLIES, task.advance)
            write_noted(file, [record for suite in asked for record in suite.answered(replies.ask)])

    def base_measured(self) -> None:
        """Measure the base, unless its records are on disk as they were written."""
        if not whole_base(self.folder / "base" / ITEMS):
            _ = self.measured

    def _records(self, measured: MeasuredBase, model: Model, loaded: PreTrainedModel) -> list[Record]:
        """Measure with the base's suites; questions in the model's own chat template and tokens if they differ."""
        names = [name for name in self.config.evaluation.suites if name not in model.left_out]
        if not model.own and not model.extra:
            return measured.evaluation.evaluate(loaded, measured.precision, names)
        shared = [name for name in names if name in distributions(self.task)]
        asked = self._suites([name for name in names if name not in shared], model.tokenizer).without_base()
        records = asked.evaluate(loaded, measured.precision)
        if shared and model.extra:
            loaded.resize_token_embeddings(self.base.facts["vocab_size"])  # distributions over the shared ids
        return records + measured.evaluation.evaluate(loaded, measured.precision, shared)

    def _suites(self, names: list[str], tokenizer: PreTrainedTokenizerBase) -> Suites:
        config = self.config.evaluation.model_copy(update={"suites": tuple(names)})
        return draw_suites(config, self.config, self.base, tokenizer, self.task)

    def _result(self, model: Model) -> ArmResult:
        folder, draws, seed = self.arm(model), self.config.evaluation.bootstrap, self.config.seed
        base, floor = without(self.base_records(), model.left_out), self.floor_records()
        floor = without(floor, model.left_out)
        cards = {
            step: score(base, floor, read_records(folder / f"items-{step}.jsonl"), draws, seed) for step in model.steps
        }
        points = [{"step": 0, **headline(score(base, floor, base, draws, seed))}]
        points += [{"step": step, **headline(card)} for step, card in cards.items()]
        return ArmResult(
            model.name, MEASURED, 0.0, "finished", steps=max(cards), trajectory=points, scorecard=cards[max(cards)]
        )

    @contextmanager
    def _tracked(self, model: Model) -> Iterator[Run]:
        note = self.arm(model) / "mlflow.json"
        with self.tracker.run(
            model.name,
            kind="measure",
            params={**self.config.to_dict(), "model": model.address, "model_kind": model.kind},
            tags={"base_model": self.base.name, "run_folder": str(self.folder)},
            run_id=read_note(note).get("run_id"),
            folder=self.arm(model),
            note=lambda run_id: write_json(note, {"run_id": run_id}),
        ) as run:
            yield run

    def _log(self, run: Run, model: Model) -> None:
        result = read_result(self.arm(model) / RESULT)
        for point in result.trajectory[1:-1]:  # the scorecard has all figures of the last one
            run.log_new({name: figure.value for name, figure in point.items() if name != "step"}, point["step"])
        run.log_new({name: figure.value for name, figure in result.scorecard.items()}, result.steps)
        for step in model.steps:
            run.log_file(self.arm(model) / f"items-{step}.jsonl", "records")
        run.log_file(self.arm(model) / RESULT, "scorecard")
        run.log_note(escaped(f"{model.address} against {self.base.name}\n\n{arms_table([result]).markdown()}"))
        run.set_tags(interval_tags(result.scorecard))


def draw_suites(
    evaluation: EvaluationConfig,
    config: MeasureConfig,
    base: Base,
    tokenizer: PreTrainedTokenizerBase,
    task: tuple[NewTask | NewText, ...],
) -> Suites:
    """Draw the items of all suites. Raises ConfigError for unknown tasks and for more items than there are."""
    context = SuiteContext(config.seed, str(base.folder), base.remote_code)
    return Suites.drawn(evaluation, context, tokenizer, task)


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
