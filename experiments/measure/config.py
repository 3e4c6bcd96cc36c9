"""The settings of a measurement: the base model, the suites and the new task. They name the folder of the results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, ValidationError, field_validator, model_validator
from transformers import PreTrainedTokenizerBase

from experiments.common.errors import ConfigError
from experiments.common.hashing import json_digest
from experiments.common.section import MAX_SEED, Place, Section, fault_lines, later_field, nearest
from experiments.data.files import LocalFile
from experiments.data.graders import AnyGrader
from experiments.data.items import NewTask, NewText
from experiments.data.source import ids_of
from experiments.evaluation.config import EvaluationConfig
from experiments.evaluation.flat_keys import of_results, replaces, set_key, with_defaults
from experiments.evaluation.kept_tasks.tasks import DEFAULT_TASKS
from experiments.evaluation.suites import SUITES
from experiments.runs.held_out import cut_documents, remarks, said_cut
from experiments.scorecard.names import figure_names

DEFAULT = ("kept", "drift", "text", "instructions", "alignment")  # and `new`, if there is a file
SEVERAL = ("auto", "balanced", "balanced_low_0", "sequential")  # device maps of accelerate over several devices
LENGTH = 512  # tokens of a document of the new task, as data.length is by default


def devices() -> dict[str, int]:
    """Return how many devices of each kind models can compute on here: {"cpu": 1, "cuda": 2}."""
    kind = torch.accelerator.current_accelerator(check_available=True)
    return {"cpu": 1} | ({kind.type: torch.accelerator.device_count()} if kind else {})


class MeasureConfig(Section):
    """What is measured. base_model: name or folder. new: file with questions or texts of the new task, or None.

    grader: of the replies to these questions. dtype: of the weights of base and models. device_map: of accelerate: over
    several devices (`auto`) or on one (`cuda:1`); None: the best device. trust_remote_code: run Python files that base
    and models bring along.
    """

    base_model: str
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    seed: int = Field(0, ge=0, le=MAX_SEED)
    new: str | None = None
    grader: AnyGrader | None = later_field(None)
    dtype: Literal["fp32", "bf16", "fp16"] = later_field("fp32")
    device_map: str | None = later_field(None)
    trust_remote_code: bool = later_field(False)
    evaluation: EvaluationConfig = EvaluationConfig()

    @field_validator("evaluation", mode="before")
    @classmethod
    def _defaults(cls, value: Any) -> Any:
        return {"suites": list(DEFAULT), **value} if isinstance(value, dict) else value

    @field_validator("device_map")
    @classmethod
    def _device(cls, value: str | None) -> str | None:
        if value is not None and value not in SEVERAL:
            try:
                one = torch.device(value)
            except RuntimeError:
                raise ValueError(f"{value!r} is no device: {nearest(value, SEVERAL)}, or one, such as cuda:0") from None
            here = devices()
            if one.type not in here or (one.index or 0) >= here[one.type]:
                known = ", ".join(f"{kind}:0 to {kind}:{n - 1}" if n > 1 else kind for kind, n in here.items())
                raise ValueError(
                    f"{value!r} is no device of this machine, which has {known}: name one of these, or leave "
                    "--device-map out for the best"
                )
        return value

    @model_validator(mode="after")
    def _graded(self) -> MeasureConfig:
        if self.grader is not None and self.new is None:
            raise ValueError("--grader reads the replies to the questions of --new: add --new FILE")
        return self

    @model_validator(mode="after")
    def _new_task(self) -> MeasureConfig:
        if (self.new is not None) != ("new" in self.evaluation.suites):
            raise ValueError(
                f"--new {self.new} is measured by the suite new: add it to --suites"
                if self.new
                else "suite new needs a file of the new task: add --new FILE, or leave the suite out"
            )
        for name in sorted(self.evaluation.unused_settings()):
            raise ValueError(f"the settings of {name} have no effect: add {name} to --suites, or leave them out")
        if "kept" in self.evaluation.suites and (idle := self.evaluation.settings("kept").idle):
            raise ValueError(idle)
        return self

    def task(self, tokenizer: PreTrainedTokenizerBase) -> tuple[NewTask | NewText, ...]:
        """Return the new task, or nothing. Of a longer file, it is what an experiment with this seed holds out."""
        if self.new is None:
            return ()
        source = LocalFile(path=self.new, grader=self.grader)
        return (cut_documents(tokenizer, source.sample(self.evaluation.new_items, self.seed), LENGTH),)

    def notes(self, task: Sequence[NewTask | NewText]) -> list[str]:
        """Say what was not read of the files, and what the answers of the new task may hide; one line each."""
        said = [] if self.new is None else self._notes_on(LocalFile(path=self.new, grader=self.grader), task)
        items = self.evaluation.settings("kept").items
        files = self.evaluation.kept_files
        return [*said, *(f"kept task {one.task}: {note}" for one in files for note in one.notes(items))]

    def _notes_on(self, source: LocalFile, task: Sequence[NewTask | NewText]) -> list[str]:
        said = [f"source {source.label}: {note}" for note in source.notes]
        for one in task:
            whole = source.sample(self.evaluation.new_items, self.seed)
            said += [*_some(source, one), *said_cut(source, whole, one, LENGTH), *remarks(source, one)]
        return said

    @property
    def loading(self) -> dict[str, Any]:
        """How weights are loaded: arguments of `load_base` and `load_model`."""
        return {"remote_code": self.trust_remote_code, "dtype": self.dtype, "device_map": self.device_map}

    def figures(self) -> list[str]:
        """List the figures that a model can have."""
        suites = self.evaluation.suites
        kept = self.evaluation.settings("kept").names
        kept += self.evaluation.settings("lm_eval").kept if "lm_eval" in suites else ()
        names = figure_names(suites, kept, floor=self.evaluation.has_floor)
        return [name for name in names if not name.startswith("cost/")]

    def to_dict(self) -> dict[str, Any]:
        return self.model_dump(mode="json")

    def digest(self, *facts: str) -> str:
        """Return eight hex digits that change whenever a result could. facts: of files on disk."""
        data = LocalFile(path=self.new, grader=self.grader).digest() if self.new else None
        kept = [file.digest() for file in self.evaluation.kept_files]
        values = {**self.to_dict(), "evaluation": of_results(self.evaluation.to_flat()), "new": data}
        return json_digest([values, *facts, *kept])[:8]


def _some(source: LocalFile, task: NewTask | NewText) -> list[str]:
    """Say if a file has more questions or texts than are measured."""
    whole, measured = len(set(ids_of(source.examples))), len(task.test if isinstance(task, NewTask) else task.documents)
    if measured == whole:
        return []
    said = f"{measured:,} of its {whole:,} questions or texts are measured, drawn by the seed (new_items)"
    return [f"source {source.label}: {said}"]


def measure_config(
    base: str,
    new: str | Path | None = None,
    suites: Sequence[str] | None = None,
    kept_tasks: Sequence[str] | None = None,
    precision: str = "auto",
    seed: int = 0,
    changes: Mapping[str, Any] | None = None,
    kept_files: Sequence[str | Path] = (),
    grader: Any = None,
    lm_eval: Sequence[str] = (),
    default: Sequence[str] = DEFAULT,
    few: Mapping[str, Any] | None = None,
    **loading: Any,
) -> MeasureConfig:
    """Make the settings. changes: fields of the section `evaluation` by their keys, such as `kept.items`, or as in the
    config of a run: `evaluation.suites.kept.items`.

    kept_files: files of further kept tasks. grader: of the new task, as in YAML. lm_eval: names of its tasks, which
    count as kept. default: suites if none are named, next to `new`. few: fields of suites, as in `changes`, where these
    set no value. loading: dtype, device_map, trust_remote_code.

    Raises ConfigError with every fault: an unknown suite, kept task or field, with the nearest name.
    """
    names = list(suites) if suites else [*(["new"] if new else []), *default]
    names += ["lm_eval"] if lm_eval and "lm_eval" not in names else []
    evaluation: dict[str, Any] = {"suites": names}
    tasks = [*(kept_tasks or (DEFAULT_TASKS if kept_files else ())), *map(str, kept_files)]
    given: dict[str, Any] = {"kept_tasks": tasks} if tasks else {}
    given |= {"lm_eval.kept": list(lm_eval)} if lm_eval else {}
    changes = {key.removeprefix("evaluation."): value for key, value in (changes or {}).items()}
    for i, key in enumerate(changes):
        earlier = [*changes][:i] if key != "suites" else []  # a list of names leaves their settings
        if before := next((one for one in earlier if replaces(_place(key), _place(one))), ""):
            raise ConfigError(f"--set {key} replaces --set {before}: leave one out")
        if why := _unread(key, new, suites):
            raise ConfigError(f"--set {key} {why}")
        if any(replaces(_place(key), _place(own)) for own in given):
            raise ConfigError(
                f"--set {key} replaces what --kept, --kept-tasks or --lm-eval give: leave one of both out"
            )
    for key, value in (given | changes).items():
        evaluation = set_key(evaluation, _dotted(key), value)
    values = {
        "base_model": base,
        "precision": precision,
        "seed": seed,
        "new": str(new) if new else None,
        "grader": grader,
        **loading,
    }
    try:
        config = MeasureConfig.model_validate({**values, "evaluation": with_defaults(evaluation, few or {})})
    except ValidationError as error:
        raise ConfigError(f"measure:\n{fault_lines(error, _keys_at)}") from None
    if suites and (added := sorted(set(config.evaluation.suites) - set(names))):  # by a setting
        raise ConfigError(f"the settings of {added[0]} have no effect: add {added[0]} to --suites, or leave them out")
    return config


def _unread(key: str, new: str | Path | None, suites: Sequence[str] | None) -> str:
    """Say why a field of the section `evaluation` cannot be set in a measurement; empty if it can."""
    if key == "every":
        return "has no effect: no model trains here, and each is measured once; leave it out"
    if key == "suites" and suites:
        return "replaces --suites: give the names there, and their settings as --set kept.items=50"
    return "has no effect: it is of the new task, add --new FILE" if key == "new_items" and new is None else ""


def _dotted(key: str) -> str:
    """Return the key in the section `evaluation`: `kept.items` is of a suite."""
    return f"suites.{key}" if key.partition(".")[0] in SUITES else key


def _place(key: str) -> str:
    """Return the key as in the config of a run."""
    return f"evaluation.{_dotted(key)}"


def _keys_at(loc: Place) -> list[str]:
    """Return the fields of the section that a fault's place points into."""
    suite = next((SUITES[part] for part in loc if part in SUITES), None)
    return list((suite.Settings if suite else EvaluationConfig).model_fields)
