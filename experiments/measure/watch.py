"""The measurements of one training in their folder: the base, each step, the best model. `ForgettingCallback` asks."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from experiments.common.errors import ConfigError
from experiments.common.files import read_json, read_note, write_json
from experiments.common.hashing import file_digest
from experiments.evaluation.evaluate import Evaluation, Suites
from experiments.measure.best import best_of, merit, write_best
from experiments.measure.config import MeasureConfig
from experiments.measure.folder import NOTE as FOLDER_NOTE
from experiments.measure.references import References
from experiments.measure.training_folder import (
    DIGESTS,
    NAME,
    check_records,
    check_settings,
    libraries,
    measured_base,
    step_of,
)
from experiments.models.precision import Precision
from experiments.records import MEASURED, ArmResult, Estimate, Record, read_records, write_records
from experiments.runs.base_records import ITEMS, STATE, TIMING, asked, asked_others, replies_noted
from experiments.runs.baseline import headline, score
from experiments.runs.checks import beyond_training, check_suites
from experiments.runs.result_file import RESULT, write_result

logger = logging.getLogger(__name__)
Card = dict[str, Estimate]


@dataclass
class Budget:
    """Spend at most a share of a training's time on measurements. longest: seconds of the longest one so far."""

    share: float
    longest: float = 0.0
    spent: float = 0.0
    began: float = field(default_factory=time.perf_counter)

    def allows(self, count: int) -> bool:
        """Whether `count` more measurements stay within the share of the time that has passed after them."""
        more = count * self.longest
        return self.spent + more <= self.share * (time.perf_counter() - self.began + more)

    @contextmanager
    def measuring(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        self.spent, self.longest = self.spent + seconds, max(self.longest, seconds)


@dataclass(eq=False)
class Watch:
    """What was measured of one training, on disk as it is here.

    points: figures by step. best: value and step of the model in the folder `best`; None if there is none of this
    training. training: an id of its own. Made by `begun`, or by `resumed` if the training goes on.
    """

    folder: Path
    config: MeasureConfig
    evaluation: Evaluation
    precision: Precision
    base: list[Record]
    budget: Budget
    points: dict[int, Card] = field(default_factory=dict)
    best: tuple[float, int] | None = None
    training: str = ""

    @classmethod
    def begun(
        cls,
        folder: Path,
        config: MeasureConfig,
        suites: Suites,
        model: PreTrainedModel,
        share: float,
        output: str = "",
        trains_whole: bool = False,
        weights: str = "",
    ) -> Watch:
        """Measure the base. Records of an earlier training in this folder are deleted, its best model is not.

        output: the folder of the training, for `default_folder`. trains_whole: the base is gone after the first step,
        so a training that goes on needs the `References` on disk. weights: a digest of the base's.
        """
        _say_beyond(config, model, suites)
        budget, precision, references = Budget(share), Precision(config.precision), References(folder).cleared(suites)
        (folder / "arms" / NAME / RESULT).unlink(missing_ok=True)
        for file in (folder / "arms" / NAME).glob("items-*.jsonl"):
            file.unlink()
        with budget.measuring():
            evaluation = suites.prepare(model, precision, references if trains_whole else None)
            records = evaluation.evaluate(model, precision, progress=False)
        (folder / "arms" / NAME / DIGESTS).unlink(missing_ok=True)
        write_records(folder / "base" / ITEMS, records)
        digest = file_digest(folder / "base" / ITEMS)
        note: dict[str, Any] = {
            "suites": evaluation.state(),
            "seconds": budget.spent,
            "items": digest,
            **config.to_dict(),
        }
        note |= {"weights": weights, "training": uuid.uuid4().hex, "output": output}
        note |= {"asked": asked(suites), "with": libraries(model), "references": references.digests(suites)}
        write_json(folder / "base" / TIMING, replies_noted(suites))
        write_json(folder / "base" / STATE, note)
        write_json(folder / FOLDER_NOTE, {"digest": "", "command": "callback", "arms": [NAME], **config.to_dict()})
        return cls(folder, config, evaluation, precision, records, budget, training=note["training"])

    @classmethod
    def resumed(
        cls,
        folder: Path,
        config: MeasureConfig,
        suites: Suites,
        model: PreTrainedModel,
        share: float,
        step: int,
        trains_whole: bool = False,
        weights: str = "",
    ) -> Watch:
        """Read back what was measured up to the step at which a training goes on; what is later is deleted.

        trains_whole: `model` is not the base any more. Suites whose `References` are lost are left out with a warning.
        Raises ConfigError if it was measured with other settings, DamagedError for records that are gone or others.
        """
        _say_beyond(config, model, suites)
        note = read_json(folder / "base" / STATE)
        check_settings(folder, note, config)
        check_records(folder, note, step)
        if weights and note.get("weights", weights) not in ("", weights):  # earlier versions: those of a name alone
            raise ConfigError(
                f"{config.base_model or 'the model'} has other weights than the base that {folder} holds measurements "
                "of: bring the old ones back, or take another folder, ForgettingCallback(folder=...)"
            )
        if changed := asked_others(note.get("asked", {}), suites):  # earlier versions noted none
            raise ConfigError(
                f"{', '.join(changed)}: the questions, their grader, the tokenizer or its chat template are not those "
                f"of the base's measurement in {folder}, so they would not compare: bring the old ones back, or take "
                "another folder, ForgettingCallback(folder=...)"
            )
        precision, references = Precision(config.precision), References(folder, note.get("references", {}))
        lost = references.lost(suites) if trains_whole else []
        if lost:
            said = "%s: not measured from step %d on, since %s has not kept what the base computed: measure checkpoints"
            logger.warning(said, ", ".join(lost), step, folder)
            suites = Suites({name: suite for name, suite in suites.suites.items() if name not in lost})
        evaluation = suites.prepare(model, precision, references if trains_whole else None, note["suites"])
        records = [record for record in read_records(folder / "base" / ITEMS) if record.suite not in lost]
        watch = cls(folder, config, evaluation, precision, records, Budget(share, float(note.get("seconds", 0.0))))
        watch.back_to(step)
        watch.points = {step_of(file): watch.card(read_records(file)) for file in watch.arm.glob("items-*.jsonl")}
        watch.training = str(note.get("training", ""))
        watch.best = best_of(folder, step, watch.training)
        return watch

    @property
    def arm(self) -> Path:
        return self.folder / "arms" / NAME

    def card(self, records: list[Record]) -> Card:
        return score(self.base, [], records, self.config.evaluation.bootstrap, self.config.seed)

    def back_to(self, step: int) -> None:
        """Delete what was measured after a step: the training goes on, or ends, with the weights of that step."""
        (self.arm / RESULT).unlink(missing_ok=True)  # of a training that had ended: lists show it until this one has
        for file in self.arm.glob("items-*.jsonl"):
            if step_of(file) > step:
                file.unlink()
        self.points = {number: card for number, card in self.points.items() if number <= step}
        kept = {name: d for name, d in read_note(self.arm / DIGESTS).items() if step_of(Path(name)) <= step}
        write_json(self.arm / DIGESTS, kept)

    def measure(self, step: int, model: PreTrainedModel) -> Card:
        """Measure the model at a step, and write its records."""
        with self.budget.measuring():
            records = self.evaluation.evaluate(model, self.precision, progress=False)
        file, known = self.arm / f"items-{step}.jsonl", read_note(self.arm / DIGESTS)
        write_records(file, records)
        write_json(self.arm / DIGESTS, known | {file.name: file_digest(file)})
        self.points[step] = self.card(records)
        return self.points[step]

    def keep_best(self, step: int, model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
        """Save the model if no earlier one has a higher gain; without a new task the latest is the best."""
        figures = {name: estimate.value for name, estimate in headline(self.points[step]).items()}
        value = merit(figures, step)
        if self.best is not None and value < self.best[0]:
            return
        write_best(self.folder, model, tokenizer, {"step": step, **figures, "training": self.training})
        self.best = (value, step)

    def result(self) -> ArmResult:
        """Return what was measured as a result of the bench."""
        base = self.card(self.base)
        points = [{"step": 0, **headline(base)}, *({"step": s, **headline(c)} for s, c in sorted(self.points.items()))]
        last = max(self.points, default=0)
        return ArmResult(
            NAME, MEASURED, 0.0, "finished", steps=last, trajectory=points, scorecard=self.points.get(last, base)
        )

    def write(self) -> None:
        write_result(self.arm, self.result())
        if not measured_base(self.folder):
            said = (
                "%s was removed while the training ran: the base and earlier steps are in the callback's result alone"
            )
            logger.warning(said, self.folder)


def _say_beyond(config: MeasureConfig, model: PreTrainedModel, suites: Suites) -> None:
    """Warn of texts beyond the positions that the model was trained with. Raises ConfigError beyond those it has."""
    name = config.base_model or "the model"
    check_suites(name, model, suites)
    for line in beyond_training(name, model, suites):
        logger.warning("%s", line)
