"""The published layout, name by name, written here by hand: ctrl reads and writes with the same names, so a wrong one
would pass every round trip."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaForCausalLM

import ctrl
from ctrl.config import ControlConfig
from ctrl.interpolation import INTERPOLATIONS
from ctrl.layer import expanded_layers
from tests.helpers import reference
from tests.helpers.families import build, in_turn, left_padded, perturb
from tests.helpers.tiny_llama import IDS, disturbed, tiny

HIDDEN = 32
OUTSIDE = {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
LAYER = {
    "input_layernorm.weight",
    "post_attention_layernorm.weight",
    "self_attn.q_proj.weight",
    "self_attn.k_proj.weight",
    "self_attn.v_proj.weight",
    "self_attn.o_proj.weight",
    "mlp.gate_proj.weight",
    "mlp.up_proj.weight",
    "mlp.down_proj.weight",
}
METHODS: dict[str, tuple[str, dict[str, tuple[int, ...]]]] = {  # ours -> merge_method, tensors beside the two layers
    "lerp": ("lerp", {"interpolation_factor": (1,)}),
    "slerp": ("slerp", {"interpolation_factor": (1,)}),
    "dlerp": ("dlerp", {"interp_weight.fc.weight": (1, 2 * HIDDEN), "interp_weight.fc.bias": (1,)}),
    "dlerpin": ("dlerpin", {"interp_weight.fc.weight": (1, HIDDEN), "interp_weight.fc.bias": (1,)}),
    "moe": ("moe", {"gating.gate_network.0.weight": (2, HIDDEN), "gating.gate_network.0.bias": (2,)}),
    "proj": ("proj", {"interpolation_factor": (1,), "linear_proj.weight": (HIDDEN, HIDDEN)}),
    "plerp": ("prog", {"interpolation_factor": (1,), "lateral_connection.weight": (HIDDEN, HIDDEN)}),
}
STRUCTURES: dict[str, tuple[list[int], list[int], int]] = {  # plain layers, layers with two branches, depth
    "concat": ([0, 2], [1, 3], 4),
    "stack": ([0, 1, 2, 3, 4, 5], [], 6),
    "hybrid": ([0, 1, 2, 3], [4], 5),
}
UNFROZEN = {"concat": [1, 3], "stack": [2, 5], "hybrid": [2, 4]}


def layout(structure: str, interpolation: str) -> set[str]:
    """Every tensor name of a 4-layer Llama whose layers 1 and 3 are expanded."""
    plain, pairs, _ = STRUCTURES[structure]
    names = OUTSIDE | {f"model.layers.{i}.{name}" for i in plain for name in LAYER}
    for i in pairs:
        names |= {
            f"model.layers.{i}.{part}.{name}" for part in ("pretrained_layer", "expanded_layer") for name in LAYER
        }
        names |= {f"model.layers.{i}.{name}" for name in METHODS[interpolation][1]}
    return names


def by_hand(folder: Path, structure: str, interpolation: str, **expansion: Any) -> dict[str, Tensor]:
    """A checkpoint in the layout above, all tensors random."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(4)
    model = tiny()
    tensors = {}
    for name in sorted(layout(structure, interpolation)):
        below = name.split(".", 3)[-1].removeprefix("pretrained_layer.").removeprefix("expanded_layer.")
        if name in OUTSIDE or below in LAYER:
            shape = model.get_parameter(name if name in OUTSIDE else f"model.layers.0.{below}").shape
            tensors[name] = 0.2 * torch.randn(shape, generator=generator) + (len(shape) == 1)
        else:
            tensors[name] = 0.5 * torch.randn(METHODS[interpolation][1][below], generator=generator)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    depth = STRUCTURES[structure][2]
    values = model.config.to_dict() | {"model_type": "causallmexpansion", "num_hidden_layers": depth}
    values["expansion"] = {
        "expand_type": structure,
        "merge_method": METHODS[interpolation][0],
        "freezed_layers": [i for i in range(depth) if i not in UNFROZEN[structure]],
        "expanded_from": "/a/path/on/another/machine",
        "num_ori_layers": 4,
        "num_exp_layers": 2,
        "interpolation_factor": 0.0,
        "interpolation_loss_alpha": 0,
        "interpolation_norm_alpha": 0,
    } | expansion
    (folder / "config.json").write_text(json.dumps(values))
    return tensors


def test_every_published_interpolation_is_written_down_here() -> None:
    assert {name for name, cls in INTERPOLATIONS.items() if cls.published is not None} == set(METHODS)


@pytest.mark.parametrize("structure", list(STRUCTURES))
@pytest.mark.parametrize("interpolation", list(METHODS))
def test_export_writes_these_names(tmp_path: Path, structure: str, interpolation: str) -> None:
    model = disturbed(structure=structure, interpolation=interpolation)
    ctrl.export_published(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert set(tensors) == layout(structure, interpolation)
    values = json.loads((tmp_path / "config.json").read_text())
    plain, pairs, depth = STRUCTURES[structure]
    assert values["num_hidden_layers"] == depth
    assert (values["model_type"], values["architectures"]) == ("causallmexpansion", ["LlamaForCausalLMExpansion"])
    found = values["expansion"]
    assert found["merge_method"] == METHODS[interpolation][0]
    assert found["freezed_layers"] == [i for i in range(depth) if i not in UNFROZEN[structure]]
    for i in pairs:
        shapes = {name: tuple(tensors[f"model.layers.{i}.{name}"].shape) for name in METHODS[interpolation][1]}
        assert shapes == METHODS[interpolation][1]
    for layer, at in zip(expanded_layers(model), UNFROZEN[structure], strict=True):
        name = "mlp.up_proj.weight" if at in plain else "expanded_layer.mlp.up_proj.weight"
        assert torch.equal(tensors[f"model.layers.{at}.{name}"], layer.expanded.mlp.up_proj.weight)


@pytest.mark.parametrize("interpolation", list(METHODS))
def test_tensors_mean_what_the_formulas_say(tmp_path: Path, interpolation: str) -> None:
    tensors = by_hand(tmp_path, "concat", interpolation)
    model = ctrl.load_published(tmp_path).eval()
    a, b, h = torch.randn(3, 2, 5, HIDDEN, generator=torch.Generator().manual_seed(1))
    for layer in expanded_layers(model):
        at = f"model.layers.{layer.index}."
        found = {name.removeprefix(at): t.double().numpy() for name, t in tensors.items() if name.startswith(at)}
        assert np.array_equal(
            layer.expanded.mlp.up_proj.weight.numpy(force=True), found["expanded_layer.mlp.up_proj.weight"]
        )
        assert np.array_equal(layer.mlp.up_proj.weight.numpy(force=True), found["pretrained_layer.mlp.up_proj.weight"])
        mixed = layer.interpolation(a, b, h)[0].detach()  # type: ignore[misc]
        want, _ = reference.mix(interpolation, *(x.double().numpy() for x in (a, b, h)), parameters(found))
        torch.testing.assert_close(mixed, torch.from_numpy(want).float(), rtol=1e-4, atol=1e-5)


def parameters(found: dict[str, Any]) -> reference.Parameters:
    """The layout's tensors as the reference names them; the gate's bias counts by the difference of its two."""
    names = {
        "interpolation_factor": "theta",
        "interp_weight.fc.bias": "theta",
        "gating.gate_network.0.bias": "theta",
        "interp_weight.fc.weight": "w",
        "gating.gate_network.0.weight": "gate",
        "linear_proj.weight": "projection",
        "lateral_connection.weight": "projection",
    }
    given = {ours: found[theirs] for theirs, ours in names.items() if theirs in found}
    given["theta"] = given["theta"][-1] - (given["theta"][0] if len(given["theta"]) == 2 else 0.0)
    if "w" in given:
        given["w"] = given["w"][0]
    return given


@pytest.mark.parametrize("structure", ["stack", "hybrid"])
def test_stacked_layers_stand_where_the_layout_says(tmp_path: Path, structure: str) -> None:
    """With factor null a pair is its expanded layer alone, so the whole checkpoint is a plain deeper Llama."""
    extra = {"interpolation_norm_alpha": 0.1} if structure == "stack" else {}
    tensors = by_hand(tmp_path, structure, "lerp", interpolation_factor=None, **extra)
    model = ctrl.load_published(tmp_path).eval()
    config = tiny().config
    config.num_hidden_layers = STRUCTURES[structure][2]
    plain = LlamaForCausalLM(config).eval()
    alone = {n.replace("expanded_layer.", ""): t for n, t in tensors.items() if ".pretrained_layer." not in n}
    plain.load_state_dict({n: t for n, t in alone.items() if not n.endswith("interpolation_factor")}, strict=True)
    torch.testing.assert_close(model(IDS).logits, plain(IDS).logits, rtol=1e-5, atol=1e-5)
    assert [(row.layer, row.branch) for row in ctrl.describe(model)] == [
        (1, "stack"),
        (3, "stack" if structure == "stack" else "concat"),
    ]


@pytest.mark.parametrize("mix", [-1, 0.25])
def test_relaxed_norms_of_a_hybrid_are_those_of_its_pairs(tmp_path: Path, mix: float) -> None:
    """-1: each norm of the expanded layer has a factor f of its own, c = clamp(2 sigmoid(f) - 1, 0, 1)."""
    tensors = by_hand(tmp_path, "hybrid", "lerp", interpolation_norm_alpha=mix)
    factors = {"input_layernorm": -0.4, "post_attention_layernorm": 0.9}
    if mix == -1:
        at = "model.layers.4.expanded_layer"
        tensors |= {f"{at}.{name}.interpolation_factor": torch.tensor([f]) for name, f in factors.items()}
        save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model = ctrl.load_published(tmp_path)
    stacked, paired = expanded_layers(model)
    assert type(stacked.expanded.input_layernorm).__name__ == "LlamaRMSNorm"
    x = torch.randn(HIDDEN, generator=torch.Generator().manual_seed(2))
    for name, factor in factors.items():
        norm: Any = paired.expanded.get_submodule(name)
        c = mix if mix > 0 else min(1.0, max(0.0, 2 * reference.sigmoid(factor) - 1))
        assert (c == 0) == (mix == -1 and factor < 0)
        weight = tensors[f"model.layers.4.expanded_layer.{name}.weight"].double().numpy()
        want = reference.relaxed_norm_token(x.double().numpy(), weight, c, norm.variance_epsilon)
        torch.testing.assert_close(norm(x).detach(), torch.from_numpy(want).float(), rtol=1e-5, atol=1e-6)
    ctrl.export_published(model, tmp_path / "again")
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensors[name]) for name in tensors)
    assert json.loads((tmp_path / "again" / "config.json").read_text())["expansion"]["interpolation_norm_alpha"] == mix


@pytest.mark.parametrize(("family", "structure"), in_turn(2))
def test_every_family_comes_back(tmp_path: Path, family: str, structure: str) -> None:
    """Without base=: config.json alone must describe the deeper stack, its layer types too."""
    model = ctrl.expand(build(family), ControlConfig(structure=structure, layers=2))  # type: ignore[arg-type]
    perturb(model)
    ctrl.export_published(model, tmp_path)
    inputs = left_padded()
    for base in (None, build(family, seed=7)):
        again = ctrl.load_published(tmp_path, base=base).eval()
        assert torch.equal(again(**inputs).logits, model(**inputs).logits)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt_neox"])
def test_bf16_is_what_from_pretrained_makes(tmp_path: Path, family: str) -> None:
    """Parameters in bf16; RoPE's frequencies, theta and the gates in fp32."""
    build(family).to(torch.bfloat16).save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.bfloat16)
    model = ctrl.expand(base, ControlConfig(interpolation="dlerp", layers=2, alpha="learned")).eval()
    perturb(model)
    ctrl.export_published(model, tmp_path / "export")
    again = ctrl.load_published(tmp_path / "export").eval()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        found = dict((*again.named_parameters(), *again.named_buffers()))[name]
        assert found.dtype == tensor.dtype, name
        assert torch.equal(found, tensor), name
    assert {p.dtype for n, p in again.named_parameters() if ".interpolation." in n} == {torch.float32}
    assert torch.equal(again(**left_padded()).logits, model(**left_padded()).logits)
