"""The YAML section `evaluation`: which suites are measured, on how many items, and when."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationInfo, field_validator, model_validator

from experiments.common.section import Section, nearest
from experiments.evaluation.evaluate import SUITES
from experiments.evaluation.kept_tasks.probes import KEPT_TASKS, PROBES

PRESETS = Path(__file__).parents[1] / "presets"


class LmEvalConfig(Section):
    """Tasks of lm-evaluation-harness. `preset: NAME` takes what presets/NAME.yaml holds; other keys go before it."""

    new: tuple[str, ...] = Field((), description="tasks, groups or tags that count as the new task")
    kept: tuple[str, ...] = Field((), description="tasks, groups or tags that must not be forgotten")
    include_path: str | None = Field(None, description="folder with tasks of one's own")
    limit: int | None = Field(None, ge=1, description="items of each task; default: all")
    fewshot: int | None = Field(None, ge=0, description="examples in a prompt; default: the task's own number")
    batch_size: int = Field(8, ge=1)
    chat: bool = Field(False, description="ask through the chat template")
    run_code: bool = Field(False, description="allow tasks that run what the model wrote (humaneval, mbpp)")

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, values: Any) -> Any:
        if not isinstance(values, dict) or "preset" not in values:
            return values
        name, path = values["preset"], PRESETS / f"{values['preset']}.yaml"
        if not path.is_file():
            raise ValueError(f"unknown preset {name!r}: {nearest(str(name), (p.stem for p in PRESETS.glob('*.yaml')))}")
        rest = {key: value for key, value in values.items() if key != "preset"}
        return yaml.safe_load(path.read_text(encoding="utf-8")) | rest

    @model_validator(mode="after")
    def _any(self) -> LmEvalConfig:
        if not self.new and not self.kept:
            raise ValueError("needs `kept` or `new` with at least one task, or a preset")
        return self


class EvaluationConfig(Section):
    """How much is measured, and when. Base, every arm and every step see the same items."""

    every: int = Field(20, ge=1, description="steps between evaluations during training")
    suites: tuple[str, ...] = Field(("new", "kept", "drift", "text"), min_length=1, description="what is measured")
    new_items: int = Field(128, ge=1)
    kept_tasks: tuple[str, ...] = Field(KEPT_TASKS, min_length=1)
    kept_items: int | Literal["all"] = Field(100, description="of each kept task; all: as many as there are")
    kept_generated: bool = Field(
        False, description="the kept chats answered in the model's own words too: a third form"
    )
    aa_floor: bool = Field(True, description="ask the base the kept questions in other words too, once")
    instruction_items: int = Field(40, ge=1, description="prompts of suite instructions")
    replies: int = Field(16, ge=1, description="base-written replies to general prompts on which KL is measured")
    new_replies: int = Field(8, ge=0, description="the same for questions of the new task")
    reply_tokens: int = Field(48, ge=1)
    perplexity_tokens: int = Field(2048, ge=64)
    bootstrap: int = Field(10_000, ge=100)
    lm_eval: LmEvalConfig | None = Field(None, description="tasks of lm-evaluation-harness, measured each time")

    @property
    def has_floor(self) -> bool:
        """Whether the A/A floor is measured: `agreement`, whose minimal pairs have one wording, has none."""
        return self.aa_floor and "kept" in self.suites and set(self.kept_tasks) != {"agreement"}

    @field_validator("kept_items", mode="before")
    @classmethod
    def _number_or_all(cls, value: Any) -> Any:
        if value != "all" and (not isinstance(value, int) or isinstance(value, bool) or value < 4):
            raise ValueError("must be a number of 4 or more, or all")
        return value

    @field_validator("suites", "kept_tasks")
    @classmethod
    def _known(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        known: Iterable[str] = SUITES if info.field_name == "suites" else PROBES
        for name in value:
            if name not in known:
                raise ValueError(f"unknown name {name!r}: {nearest(name, known)}")
            if value.count(name) > 1:
                raise ValueError(f"{name!r} stands more than once")
        return value

    @model_validator(mode="after")
    def _lm_eval(self) -> EvaluationConfig:
        if (self.lm_eval is None) == ("lm_eval" in self.suites):
            raise ValueError("`lm_eval` needs both its section (which tasks) and its name in `suites`")
        return self
