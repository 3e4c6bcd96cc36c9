"""Fit training into the device's memory: cut steps into micro-batches, and refuse a run that cannot fit at all."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import torch

from experiments.common.errors import RunError
from experiments.config import ExperimentConfig
from experiments.methods.config import ArmConfig
from experiments.plan.accelerators import Device, here
from experiments.plan.launches import this_sharding
from experiments.plan.plan import plan_run
from experiments.plan.report import refusal
from experiments.plan.shape import base_model

SHORT = 64  # tokens of a row, if rows are conversations of unknown length
PER_PARAMETER = 20  # bytes: weight, gradient and AdamW's state in fp32, and casts
PER_WIDTH = 400  # bytes of activations for each token, layer and column of the hidden and of the inner state, at most
USED = 0.9  # share of a GPU's memory that the default of micro_batch counts on: what the plan was found to be off by


def gpu() -> Device | None:
    """Return this machine's GPU; None without one: how much of the main memory is free changes all the time."""
    return here() if torch.cuda.is_available() else None


def check_fits(config: ExperimentConfig, processes: int = 1) -> None:
    """Raise RunError if a step of an arm needs more than the device has, with the change that would let it fit.

    A step that fits in micro-batches is not refused where `fitting_rows` cuts it.

    Rows are as long as they are known to be: `data.length` of packed ones, else SHORT. A model or a method that cannot
    be planned is not refused.
    """
    device, arms = here(), {arm.name: arm for arm in config.arms}
    if not torch.cuda.is_available():
        device = replace(device, memory=device.memory / processes)
    try:
        length = config.data.length if config.data.packs else min(config.data.length, SHORT)
        if _surely_fits(config, device, length):
            return
        plan = plan_run(config, device, processes, this_sharding(), length)
    except Exception:  # whatever it is: loading the model says it, if it is a fault
        return
    kept = [arm for arm in plan.arms if not (arm.micro_batch and cuts_itself(config, arms[arm.name]))]
    if (refused := replace(plan, arms=kept)).too_large:
        raise RunError(refusal(refused))


def cuts_itself(config: ExperimentConfig, arm: ArmConfig) -> bool:
    """Whether `fitting_rows` may cut an arm's steps: on a GPU, without `micro_batch`, and with the same results."""
    return config.training.micro_batch is None and not arm.build().reads_pass and gpu() is not None


def fitting_rows(config: ExperimentConfig, arm: ArmConfig, processes: int = 1) -> tuple[int, str] | None:
    """Return the default of `training.micro_batch` of an arm and a line that says why.

    None: all rows of a step at once. So it is if they fit, without a GPU, for methods that read a whole step's rows,
    and for models that cannot be planned. Rows count as `data.length` tokens long.
    """
    found = gpu()
    if found is None or not cuts_itself(config, arm):
        return None
    device = replace(found, memory=USED * found.memory)
    try:
        if not counts_tokens(config) or _surely_fits(config, device, config.data.length):
            return None
        plan = plan_run(config.model_copy(update={"arms": (arm,)}), device, processes, this_sharding())
    except Exception:  # whatever it is: the arm trains as it would without a plan
        return None
    if not plan.too_large or not plan.arms[0].micro_batch:
        return None
    one, giga = plan.arms[0], 1e9
    return one.micro_batch, (
        f"{arm.name}: micro-batches of {one.micro_batch} rows, as the plan says they fit: all {one.setup.rows} at once "
        f"would need {one.peak / giga:.1f} GB of the {device.memory / giga:.1f} counted on (training.micro_batch)"
    )


def counts_tokens(config: ExperimentConfig) -> bool:
    """Whether the base model divides its loss by the tokens of a whole step, as Trainer looks at it."""
    model = base_model(config)
    said = getattr(model, "accepts_loss_kwargs", None)
    kinds = [one.kind for one in inspect.signature(model.forward).parameters.values()]
    return bool(said) if said is not None else inspect.Parameter.VAR_KEYWORD in kinds


def _surely_fits(config: ExperimentConfig, device: Device, length: int) -> bool:
    """Whether half of the memory is enough by a bound that no method passes. It costs no trace."""
    model = base_model(config)
    text: Any = model.config.get_text_config()
    width = text.hidden_size + (getattr(text, "intermediate_size", None) or 4 * text.hidden_size)
    tokens = config.training.step_rows * length
    most = PER_PARAMETER * model.num_parameters() + PER_WIDTH * tokens * text.num_hidden_layers * width
    return most < device.memory / 2
