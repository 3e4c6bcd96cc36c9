"""Build an arm and run its training steps as the bench does, for the benchmarks that measure them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from experiments.config import ExperimentConfig, parse_config
from experiments.methods import MethodContext
from experiments.models.head import only_label_logits
from experiments.models.precision import Precision
from experiments.training.checkpointing import checkpoint_layers
from experiments.training.lm_loss import lm_loss


def config_of_one(
    model: str, arm: dict[str, Any], precision: str, data: dict[str, Any], training: dict[str, Any]
) -> ExperimentConfig:
    """Return the config of a run with one arm at one rate."""
    return parse_config(
        {
            "name": "benchmark",
            "base_model": model,
            "precision": precision,
            "data": data,
            "training": training,
            "arms": [{"name": "x", "learning_rates": [1e-5], **arm}],
        }
    )


def begun_arm(given: ExperimentConfig, base: Any, precision: Precision) -> Any:
    """Return the arm's model as it is at its first step. base: the loaded model, which becomes a part of it."""
    method, context = given.arms[0].build(), MethodContext(0, precision)
    model = method.prepare(base, context).train()
    method.begin(model, context)
    checkpoint_layers(model, given.training.checkpointing)
    return model


def stepper(model: Any, batch: dict[str, Any], precision: Precision) -> Callable[[], None]:
    """Return a function that runs one step: forward and backward pass with the loss in chunks, clipping, AdamW."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)
    inputs = only_label_logits(batch)
    with precision.autocast():
        loss_of = lm_loss(model)

    def step() -> None:
        with precision.autocast(), loss_of():
            loss = model(**inputs, use_cache=False).loss
        loss.backward()
        del loss
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step
