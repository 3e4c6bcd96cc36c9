"""A published checkpoint, written by hand from the paper's layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.helpers.tiny_llama import tiny


def by_hand(folder: Path, **expansion: Any) -> dict[str, torch.Tensor]:
    """A published lerp checkpoint with layers 1 and 3 of 4 expanded, written from the layout's description alone."""
    base = tiny().eval()
    generator = torch.Generator().manual_seed(4)
    tensors: dict[str, torch.Tensor] = {}
    for name, value in base.state_dict().items():
        value = value.clone()
        parts = name.split(".")
        if name.startswith("model.layers.") and parts[2] in ("1", "3"):
            head, rest = ".".join(parts[:3]), ".".join(parts[3:])
            tensors[f"{head}.pretrained_layer.{rest}"] = value
            tensors[f"{head}.expanded_layer.{rest}"] = value + 0.05 * torch.randn(value.shape, generator=generator)
            tensors[f"{head}.interpolation_factor"] = torch.tensor([0.7])
        else:
            tensors[name] = value
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    values = base.config.to_dict() | {"model_type": "causallmexpansion", "architectures": ["LlamaForCausalLMExpansion"]}
    values["expansion"] = {
        "expand_type": "concat",
        "merge_method": "lerp",
        "freezed_layers": [0, 2],
        "expanded_from": "/a/path/on/another/machine",
        "num_ori_layers": 4,
        "num_exp_layers": 2,
        "interpolation_factor": 0.7,
        "interpolation_loss_alpha": 1.0,
        "interpolation_loss_type": "mse",
        "interpolation_norm_alpha": 0,
        "freeze_interpolation_factor": True,
    } | expansion
    (folder / "config.json").write_text(json.dumps(values))
    return tensors
