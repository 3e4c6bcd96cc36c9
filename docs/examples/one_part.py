"""A tuning of your own: train the attention of all layers in place, or their feed-forward part."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from transformers import PreTrainedModel

from experiments.common.errors import ConfigError
from experiments.methods.base import MethodContext, Tuning
from experiments.methods.tables import TUNINGS


class OnePart(Tuning):
    """Train one part of every decoder layer in place; everything else is frozen."""

    part: Literal["self_attn", "mlp"] = Field("self_attn", description="name of the part in the model")

    def prepare(self, model: PreTrainedModel, context: MethodContext) -> PreTrainedModel:
        for name, p in model.named_parameters():
            p.requires_grad_(f".{self.part}." in name)
        if not any(p.requires_grad for p in model.parameters()):
            raise ConfigError(f"one_part: no layer of the model has a part {self.part!r}: choose the other one")
        return model


TUNINGS["one_part"] = OnePart
