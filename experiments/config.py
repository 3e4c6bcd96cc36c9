"""The typed YAML of an experiment: every field, its default and its check; section `evaluation` lies with its suites.

Unknown keys fail with the nearest key; all faults are reported at once; a config is frozen once read.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from ctrl import ControlConfig
from experiments.data.sources import SOURCES, AnySource, ReasoningGym, check_shares, named, with_shares
from experiments.data.stages import check_stream, stage_ends
from experiments.evaluation.config import EvaluationConfig
from experiments.methods import METHODS, Method
from experiments.methods.tuning import Control
from experiments.section import ConfigError, Place, Section, fault_lines, nearest
from experiments.training.schedules import SCHEDULES
from experiments.yaml_values import read_yaml, set_field

SHIPPED = Path(__file__).parent / "configs"


class DataConfig(Section):
    """What is learned, and how much of what was known is replayed. Shares are of tokens."""

    new: tuple[AnySource, ...] = Field((ReasoningGym(),), min_length=1, description="one source or a list")
    old: tuple[AnySource, ...] = Field((), description="what replay is drawn from: one source or a list")
    replay: float = Field(0.0, ge=0, lt=1, description="share of `old` in all tokens; the rest is `new`")
    order: Literal["mixed", "sequential"] = Field("mixed", description="`new` all at once, or one after the other")
    regime: Literal["sft", "cpt"] = Field("sft", description="chats with the loss on answers, or packed text")
    system: str | None = Field(
        None, description="system turn of all chats ('' leaves it empty); default: the template's"
    )
    length: int = Field(512, ge=16, description="tokens of a row: cpt packs to it, sft cuts longer texts")

    @field_validator("new", "old", mode="before")
    @classmethod
    def _list(cls, value: Any) -> Any:
        values = [value] if isinstance(value, dict) else value
        return with_shares([named(one) for one in values]) if isinstance(values, list | tuple) else values

    @model_validator(mode="after")
    def _mixture(self) -> DataConfig:
        check_shares(self.new, "new")
        check_shares(self.old, "old")
        check_stream(self)
        if any(source.source == "self" for source in self.new):
            raise ValueError("new: source self is what the model can do already; it belongs under old")
        if self.replay and not self.old:
            raise ValueError(
                f"replay={self.replay:g} needs something to replay: write old:, for example old: {{source: self}}"
            )
        return self

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
    schedule: str = Field("constant_with_warmup", description="a name in experiments.training.schedules.SCHEDULES")
    min_lr_ratio: float = Field(0.1, ge=0, le=1, description="cosine, infinite: last learning rate / the highest")
    constant_lr_ratio: float = Field(0.5, gt=0, le=1, description="infinite: constant learning rate / the highest")
    cooldown_share: float = Field(0.3, ge=0, lt=1, description="infinite: part of all steps that leads to the constant")
    anneal_share: float = Field(0.2, ge=0, lt=1, description="infinite: part of all steps of the final annealing")
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    save_every: int | None = Field(None, ge=1, description="steps between checkpoints; default: at each evaluation")

    @field_validator("schedule")
    @classmethod
    def _schedule(cls, value: str) -> str:
        if value not in SCHEDULES:
            raise ValueError(f"unknown schedule {value!r}: {nearest(value, SCHEDULES)}")
        return value

    @model_validator(mode="after")
    def _phases(self) -> TrainingConfig:
        used = self.warmup_steps + round(self.cooldown_share * self.steps) + round(self.anneal_share * self.steps)
        if self.schedule == "infinite" and used > self.steps:
            raise ValueError(
                f"schedule 'infinite' has no room: warmup_steps={self.warmup_steps}, cooldown_share="
                f"{self.cooldown_share:g} and anneal_share={self.anneal_share:g} need {used} of {self.steps} steps"
            )
        if self.schedule == "infinite" and not self.min_lr_ratio:
            raise ValueError("schedule 'infinite' anneals exponentially: min_lr_ratio must be above 0, but got 0")
        if self.schedule == "infinite" and self.min_lr_ratio > self.constant_lr_ratio:
            raise ValueError(
                f"schedule 'infinite' anneals down from constant_lr_ratio={self.constant_lr_ratio:g}, but "
                f"min_lr_ratio={self.min_lr_ratio:g} lies above it"
            )
        return self


class ArmConfig(Section):
    """One method and the learning rates it is tried at."""

    name: str
    method: str
    learning_rates: tuple[float, ...] = Field(min_length=1)
    control: ControlConfig = Field(default_factory=ControlConfig, description="what is expanded; partial: which layers")
    options: dict[str, Any] = Field(default_factory=dict, description="the method's own fields")
    replay: float | None = Field(None, ge=0, lt=1, description="this arm's data.replay, if it is not the experiment's")

    @model_validator(mode="before")
    @classmethod
    def _structure(cls, values: Any) -> Any:
        """Methods stack and hybrid are control with that structure."""
        cls_of_method = METHODS.get(str(values.get("method"))) if isinstance(values, dict) else None
        if cls_of_method is None or not issubclass(cls_of_method, Control) or cls_of_method.structure is None:
            return values
        control, name = values.get("control") or {}, cls_of_method.structure
        control = control if isinstance(control, dict) else control.to_dict()
        if control.get("structure", name) not in (name, "concat"):
            raise ValueError(f"method {name!r} has structure {name!r}, but control.structure={control['structure']!r}")
        return {**values, "control": {**control, "structure": name}}

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

    @model_validator(mode="after")
    def _options(self) -> ArmConfig:
        self.build()
        return self

    def build(self) -> Method:
        """The method with this arm's options. Raises ValueError naming an unknown or wrong option."""
        method = METHODS[self.method]
        try:
            return method.model_validate(self.options)
        except ValidationError as error:
            faults = [_option_fault(self.method, method, fault) for fault in error.errors()]
            raise ValueError("; ".join(faults)) from None


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

    @model_validator(mode="after")
    def _stages(self) -> ExperimentConfig:
        stage_ends(self.data, self.training.steps)
        return self

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
    path, values = read_yaml(path, SHIPPED, "config file")
    for key, value in (overrides or {}).items():
        set_field(values, key, value)
    return parse_config(values, source=str(path))


def parse_config(values: dict[str, Any], source: str = "config") -> ExperimentConfig:
    """Check plain values. Raises ConfigError with every fault, its place and, for a typo, the nearest key."""
    try:
        return ExperimentConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{source}:\n{fault_lines(error, _keys_at)}") from None


def _option_fault(name: str, method: type[Method], fault: Any) -> str:
    option = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        known = nearest(option, method.model_fields) if method.model_fields else "it has none"
        return f"unknown option {option!r} of method {name!r}: {known}"
    return f"option {option} of method {name!r}: {fault['msg']} (got {fault['input']!r})"


def _keys_at(loc: Place) -> list[str]:
    """The declared keys of the section that a fault's location points into."""
    section: Any = ExperimentConfig
    for part in loc:
        if part in SOURCES:
            section = SOURCES[str(part)]
        elif isinstance(part, str) and part in section.model_fields:
            annotation = section.model_fields[part].annotation
            section = getattr(annotation, "__args__", (annotation,))[0]
    return list(section.model_fields)
