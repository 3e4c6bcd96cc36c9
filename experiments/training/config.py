"""The YAML section `training`: steps, batches and the learning-rate schedule, the same for all arms."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from experiments.common.section import Section, later_field, nearest
from experiments.training.arguments import check_arguments, identity
from experiments.training.checkpointing import Checkpointing
from experiments.training.groups import Rates
from experiments.training.schedules import SCHEDULES

FREE = {"micro_batch", "checkpointing", "keep", "keep_dtype", "arguments"}  # change no figure; arguments: some do
MAX_STEPS, MAX_ROWS, MAX_DECAY = 10**7, 10**5, 1000.0  # beyond these a number is mistyped


class TrainingConfig(Section):
    """One schedule for all arms; only the learning rate differs between them."""

    steps: int = Field(60, ge=1, le=MAX_STEPS, description="optimiser steps of each arm")
    batch_size: int = Field(
        16, ge=1, le=MAX_ROWS, description="conversations, texts, or in cpt rows of one step, of all processes together"
    )
    micro_batch: int | None = later_field(
        None, ge=1, le=MAX_ROWS,
        description="most rows that a device sees at once: a step is then cut into as many equal micro-batches as it "
        "takes, on any number of devices, and results stay the same, except with dropout and NEFTune, which draw other "
        "masks and other noise. none: all rows of a step at once, or on a GPU what the plan says fits",
    )  # fmt: skip
    gradient_accumulation: int = Field(1, ge=1, le=MAX_ROWS, description="batches of `batch_size` rows per step")
    warmup_steps: int = Field(
        5,
        ge=0,
        description="steps in which the learning rate rises from 0; not given: of a shorter run all but the last",
    )
    schedule: str = Field("constant_with_warmup", description="name of one of the [schedules](#schedules)")
    min_lr_ratio: float = Field(0.1, ge=0, le=1, description="cosine, infinite: last learning rate / the highest")
    constant_lr_ratio: float = Field(0.5, gt=0, le=1, description="infinite: constant learning rate / the highest")
    cooldown_share: float = Field(0.3, ge=0, lt=1, description="infinite: part of all steps that leads to the constant")
    anneal_share: float = Field(0.2, ge=0, lt=1, description="infinite: part of all steps of the final annealing")
    weight_decay: float = Field(0.0, ge=0, le=MAX_DECAY, description="of AdamW")
    max_grad_norm: float = Field(
        1.0, gt=0, allow_inf_nan=True, description="gradients are clipped to this norm; .inf: never"
    )
    checkpointing: Checkpointing = later_field(
        "none",
        description="compute layers again in the backward pass instead of keeping their activations: all, or what is "
        "frozen of them. Less memory, more time, the same results",
    )
    rates: Rates = later_field(Rates(), description="learning rates of alphas and gates")
    arguments: dict[str, Any] = later_field(
        {}, description="further fields of transformers' [TrainingArguments](#trainer-arguments)"
    )
    keep: Literal["last", "best", "local", "none"] = later_field(
        "last",
        description="trained weights that stay. last: those of the last step, in the run's folder and in MLflow "
        "(one file with two names on one disk); local: in the folder alone; best: in the folder alone, those of the "
        "evaluation with the highest gain + retention, of equals the latest; none: figures alone, without posthoc",
    )
    keep_dtype: Literal["fp32", "bf16", "fp16"] = later_field(
        "fp32", description="of the matrices among the trained weights that stay: posthoc reads them rounded to it"
    )
    save_every: int | None = Field(
        None, ge=1, description="steps between checkpoints; default: at each evaluation, or ten in a run that is "
        "measured at its end alone (`evaluation.every: null`)",
    )  # fmt: skip

    @field_validator("schedule")
    @classmethod
    def _schedule(cls, value: str) -> str:
        if value not in SCHEDULES:
            raise ValueError(f"unknown schedule {value!r}: {nearest(value, SCHEDULES)}")
        return value

    @field_validator("arguments")
    @classmethod
    def _arguments(cls, value: dict[str, Any]) -> dict[str, Any]:
        return check_arguments(value)

    @model_validator(mode="before")
    @classmethod
    def _short(cls, values: Any) -> Any:
        """Cut the default warm-up of a run that is shorter: its last step has the whole rate.

        A study's base has the default written out.
        """
        default = cls.model_fields["warmup_steps"].default
        if not isinstance(values, dict) or values.get("warmup_steps", default) != default:
            return values
        steps = values.get("steps")
        return {**values, "warmup_steps": steps - 1} if isinstance(steps, int) and 1 <= steps < default else values

    @model_validator(mode="after")
    def _one_way(self) -> TrainingConfig:
        """Refuse two ways to say how a step is cut: each would undo the other."""
        if self.micro_batch is not None and self.gradient_accumulation > 1:
            raise ValueError(
                f"micro_batch={self.micro_batch} cuts a step of batch_size rows, and gradient_accumulation="
                f"{self.gradient_accumulation} makes one of several: set batch_size to "
                f"{self.batch_size * self.gradient_accumulation} and leave gradient_accumulation out"
            )
        return self

    @property
    def step_rows(self) -> int:
        """Rows of one optimiser step, of all processes together."""
        return self.batch_size * self.gradient_accumulation

    def cut(self, own: int) -> tuple[int, int]:
        """Return the rows of a micro-batch of one process, and how many a step has. own: its rows of `batch_size`."""
        rows = max(n for n in range(1, min(own, self.micro_batch or own) + 1) if own % n == 0)
        return rows, own // rows * self.gradient_accumulation

    def identity(self) -> dict[str, Any]:
        """Return plain values without those that change how a step runs, but no result: digests are made of them."""
        values = self.model_dump(mode="json", exclude=FREE)
        given = identity(self.arguments)
        return {**values, **({"arguments": given} if given else {})}

    @model_validator(mode="after")
    def _phases(self) -> TrainingConfig:
        if self.warmup_steps > self.steps:
            raise ValueError(
                f"warmup_steps={self.warmup_steps} is more than steps={self.steps}: the learning rate would never be "
                "reached. Lower warmup_steps"
            )
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
                f"min_lr_ratio={self.min_lr_ratio:g} is above it"
            )
        return self
