"""Refuse a run whose training cannot fit into the device's memory, before anything is loaded."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from experiments.common.errors import RunError
from experiments.config import ExperimentConfig
from experiments.plan.accelerators import Device, here
from experiments.plan.plan import plan_run
from experiments.plan.report import refusal
from experiments.plan.shape import base_model
from experiments.training.processes import deepspeed, shards

SHORT = 64  # tokens of a row, if rows are conversations of unknown length
PER_PARAMETER = 20  # bytes: weight, gradient and AdamW's state in fp32, and casts
PER_WIDTH = 400  # bytes of activations for each token, layer and column of the hidden and of the inner state, at most


def check_fits(config: ExperimentConfig, processes: int = 1) -> None:
    """Raise RunError if a step of an arm needs more than the device has, with the change that would let it fit.

    Rows are as long as they are known to be: `data.length` of packed ones, else SHORT. A model or a method that cannot
    be planned is not refused.
    """
    device = here()
    if not torch.cuda.is_available():
        device = replace(device, memory=device.memory / processes)
    try:
        length = config.data.length if config.data.packs else min(config.data.length, SHORT)
        if _surely_fits(config, device, length):
            return
        plan = plan_run(config, device, processes, "fsdp" if shards() else "zero2" if deepspeed() else "none", length)
    except Exception:  # whatever it is: loading the model says it, if it is a fault
        return
    if plan.too_large:
        raise RunError(refusal(plan))


def _surely_fits(config: ExperimentConfig, device: Device, length: int) -> bool:
    """Whether half of the memory is enough by a bound that no method passes. It costs no trace."""
    model = base_model(config)
    text: Any = model.config.get_text_config()
    width = text.hidden_size + (getattr(text, "intermediate_size", None) or 4 * text.hidden_size)
    tokens = config.training.step_rows * length
    most = PER_PARAMETER * model.num_parameters() + PER_WIDTH * tokens * text.num_hidden_layers * width
    return most < device.memory / 2
