"""Layers that depend on their index: copies have another one, and a merged stack moves those after it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as tf
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

import ctrl
from tests.helpers.families import SHAPE, perturb
from tests.helpers.tiny_llama import tiny


class ByDepth(LlamaDecoderLayer):
    """Deeper layers add less. A copy has another index, so it would add less still."""

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        out = super().forward(hidden_states, **kwargs)
        return hidden_states + (out - hidden_states) / (1 + self.self_attn.layer_idx)


@pytest.mark.parametrize("structure", ["concat", "stack"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_that_compute_with_their_index_are_refused(structure: Any, dtype: torch.dtype) -> None:
    model: Any = tiny().to(dtype)  # type: ignore[arg-type]
    ctrl.unload(ctrl.expand(model, ctrl.ControlConfig(layers=2, structure=structure)))
    for layer in model.model.layers:
        layer.__class__ = ByDepth
    with pytest.raises(ctrl.ConfigError, match=r"layer 1, a ByDepth, computes with its index \(layer_idx\)"):
        ctrl.expand(model, ctrl.ControlConfig(layers=2, structure=structure))
    assert [layer.self_attn.layer_idx for layer in model.model.layers] == [0, 1, 2, 3]


@pytest.mark.parametrize("structure", ["stack", "concat"])
def test_parts_of_images_that_layers_get_by_index_are_no_stack(structure: Any) -> None:
    """Qwen3-VL adds them after its first layers, which it counts; parallel copies move none."""
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e4}
    vision = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32,
        "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1],
    }  # fmt: skip
    text = {**SHAPE, "head_dim": 8, "rope_parameters": rope}
    model = tf.Qwen3VLForConditionalGeneration(tf.Qwen3VLConfig(text_config=text, vision_config=vision))
    ctrl.expand(model.eval(), ctrl.ControlConfig(layers=2, structure=structure))
    with torch.no_grad():
        perturb(model)
    if structure == "concat":
        assert type(ctrl.merge_back(model)) is tf.Qwen3VLForConditionalGeneration
        return
    with pytest.raises(ctrl.ConfigError, match=r"adds parts of images \(deepstack_visual_embeds\) after its first"):
        ctrl.merge_back(model)
