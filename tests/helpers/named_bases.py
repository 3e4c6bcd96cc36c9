"""Tiny bases that have names, and expansions of them that are saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

import ctrl
from tests.helpers.tiny_llama import tiny


def named(name: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    base: Any = tiny(seed).eval().to(dtype)  # type: ignore[arg-type]
    base.config._name_or_path = name
    return base


def saved(folder: Path, base: PreTrainedModel, **values: Any) -> Any:
    model = ctrl.expand(base, ctrl.ControlConfig(**{"layers": 2, **values}))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    ctrl.save(model, folder)
    return model


def one_row(weight: torch.Tensor) -> None:
    weight[7, 1] += 0.5  # no sampled value
