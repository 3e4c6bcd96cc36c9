"""Methods: what trains. Each takes the base model and the arm and returns the model to train; one engine serves all."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from transformers import PreTrainedModel

import ctrl
from ctrl.structure import decoder_layers, place

if TYPE_CHECKING:
    from experiments.config import ArmConfig  # which checks names against METHODS


def full(model: PreTrainedModel, arm: ArmConfig) -> PreTrainedModel:
    """All weights."""
    model.requires_grad_(True)
    return model


def partial(model: PreTrainedModel, arm: ArmConfig) -> PreTrainedModel:
    """The layers that Control LLM would expand (`control.layers`), tuned in place."""
    layers = decoder_layers(model)
    model.requires_grad_(False)
    for index in place(arm.control.layers, len(layers)):
        layers[index].requires_grad_(True)
    return model


def control(model: PreTrainedModel, arm: ArmConfig) -> PreTrainedModel:
    """Control LLM: frozen pretrained layers, trainable copies beside some of them (`control`)."""
    return ctrl.expand(model, arm.control)


METHODS: dict[str, Callable[[PreTrainedModel, ArmConfig], PreTrainedModel]] = {
    "full": full,
    "partial": partial,
    "control": control,
}
