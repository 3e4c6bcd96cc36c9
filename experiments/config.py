"""The typed YAML of an experiment: every field, its default and its check, in one place.

Unknown keys fail with the nearest key; all faults are reported at once; a config is frozen once read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from ctrl import ControlConfig
from experiments.data.sources import ReasoningGym
from experiments.evaluation.evaluate import SUITES
from experiments.evaluation.probes import KEPT_TASKS, PROBES
from experiments.methods import METHODS
from experiments.section import ConfigError, Section, nearest

SHIPPED = Path(__file__).parent / "configs"
PRESETS = Path(__file__).parent / "presets"


class DataConfig(Section):
    """What is learned, and how much of what was known is replayed. Shares are of tokens."""

    new: tuple[ReasoningGym, ...] = Field((ReasoningGym(),), min_length=1, description="one source or a list")
    old: tuple[ReasoningGym, ...] = Field((), description="what replay is drawn from: one source or a list")
    replay: float = Field(0.0, ge=0, lt=1, description="share of `old` in all tokens; the rest is `new`")
    regime: Literal["sft", "cpt"] = Field("sft", description="chats with the loss on answers, or packed text")
    length: int = Field(512, ge=16, description="tokens of a row: cpt packs to it, sft cuts longer items")

    @field_validator("new", "old", mode="before")
    @classmethod
    def _list(cls, value: Any) -> Any:
        return [value] if isinstance(value, dict) else value

    @property
    def label(self) -> str:
        """The new task in a few words."""
        return " + ".join(source.label for source in self.new)


class TrainingConfig(Section):
    """One schedule for all arms; only the learning rate differs between them."""

    steps: int = Field(60, ge=1)
    batch_size: int = Field(16, ge=1, description="sequences per optimiser step and micro-batch")
    gradient_accumulation: int = Field(1, ge=1)
    warmup_steps: int = Field(5, ge=0)
    schedule: Literal["constant_with_warmup", "linear", "cosine"] = "constant_with_warmup"
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    save_every: int | None = Field(None, ge=1, description="steps between checkpoints; default: at each evaluation")


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
    kept_items: int = Field(100, ge=4, description="items of each kept task")
    instruction_items: int = Field(40, ge=1, description="prompts of suite instructions")
    replies: int = Field(16, ge=1, description="base-written replies to general prompts on which KL is measured")
    new_replies: int = Field(8, ge=0, description="the same for questions of the new task")
    reply_tokens: int = Field(48, ge=1)
    perplexity_tokens: int = Field(2048, ge=64)
    bootstrap: int = Field(10_000, ge=100)
    lm_eval: LmEvalConfig | None = Field(None, description="tasks of lm-evaluation-harness, measured each time")

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


class ArmConfig(Section):
    """One method and the learning rates it is tried at."""

    name: str
    method: str
    learning_rates: tuple[float, ...] = Field(min_length=1)
    control: ControlConfig = Field(default_factory=ControlConfig, description="what is expanded; partial: which layers")
    options: dict[str, Any] = Field(default_factory=dict, description="the method's own fields")
    replay: float | None = Field(None, ge=0, lt=1, description="this arm's data.replay, if it is not the experiment's")

    @field_validator("control", mode="before")
    @classmethod
    def _control(cls, value: Any) -> Any:
        return ControlConfig.from_dict(value) if isinstance(value, dict) else value

    @field_validator("method")
    @classmethod
    def _method(cls, value: str) -> str:
        if value not in METHODS:
            raise ValueError(f"unknown method {value!r}: {nearest(value, METHODS)}")
        return value


class ExperimentConfig(Section):
    """A whole experiment: one base, one task, the same data in the same order for every arm."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    base_model: str = "smollm2-135m-instruct"
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    seed: int = Field(0, ge=0)
    data: DataConfig = DataConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    arms: tuple[ArmConfig, ...] = Field(min_length=1)

    @field_validator("arms")
    @classmethod
    def _distinct(cls, arms: tuple[ArmConfig, ...]) -> tuple[ArmConfig, ...]:
        names = [arm.name for arm in arms]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"arm names must differ, but {', '.join(twice)} stands more than once")
        return arms

    def to_dict(self) -> dict[str, Any]:
        """Plain values; what is written to YAML, hashed and logged."""
        values = self.model_dump(mode="json", exclude={"arms"})
        values["arms"] = [
            {**arm.model_dump(mode="json", exclude={"control"}), "control": arm.control.to_dict()} for arm in self.arms
        ]
        return values

    def digest(self) -> str:
        """Eight hex digits that change whenever a result could."""
        text = json.dumps(self.to_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]


def load_config(path: str | Path, overrides: dict[str, Any] | None = None) -> ExperimentConfig:
    """Read a YAML file, or a shipped one by name (`quickstart`). Raises ConfigError.

    overrides: dotted keys (`training.steps`) and the values they get instead.
    """
    path, shipped = Path(path), SHIPPED / f"{path}.yaml"
    path = shipped if shipped.is_file() and not path.is_file() else path
    if not path.is_file():
        names = ", ".join(sorted(str(p.relative_to(SHIPPED).with_suffix("")) for p in SHIPPED.rglob("*.yaml")))
        raise ConfigError(f"no config file {path}: give a path, or a shipped name: {names}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold a mapping at the top, but holds {type(values).__name__}")
    for key, value in (overrides or {}).items():
        _set(values, key, value)
    return parse_config(values, source=str(path))


def parse_config(values: dict[str, Any], source: str = "config") -> ExperimentConfig:
    """Check plain values. Raises ConfigError with every fault, its place and, for a typo, the nearest key."""
    try:
        return ExperimentConfig.model_validate(values)
    except ValidationError as error:
        faults = [_describe(fault) for fault in error.errors() if fault["type"] != "too_short" or not fault["input"]]
        raise ConfigError(f"{source}:\n" + "\n".join(f"  {fault}" for fault in faults)) from None


def _set(values: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for key in parents:
        values = values.setdefault(key, {})
        if not isinstance(values, dict):
            raise ConfigError(f"cannot set {dotted!r}: {key!r} is not a section")
    values[last] = value


def _describe(fault: Any) -> str:
    place = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        known = _keys_at(fault["loc"][:-1])
        return f"{place}: unknown key; {nearest(str(fault['loc'][-1]), known)}"
    got = f" (got {fault['input']!r})" if not isinstance(fault["input"], dict | list) else ""
    return f"{place}: {fault['msg'].removeprefix('Value error, ')}{got}"


def _keys_at(loc: tuple[int | str, ...]) -> list[str]:
    """The declared keys of the section that a fault's location points into."""
    section: Any = ExperimentConfig
    for part in loc:
        if isinstance(part, str) and part in section.model_fields:
            annotation = section.model_fields[part].annotation
            section = getattr(annotation, "__args__", (annotation,))[0]
    return list(section.model_fields)
