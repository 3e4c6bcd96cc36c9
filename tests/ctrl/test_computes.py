"""The same weights under another config are another base, if that config computes something else with them."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import ctrl
from tests.helpers.families import build
from tests.helpers.named_bases import named, saved
from tests.helpers.tiny_llama import IDS


@pytest.mark.parametrize("change", [{"rms_norm_eps": 1e-2}, {"hidden_act": "relu"}, {"rope_theta": 5e5}])
def test_equal_weights_under_a_config_that_computes_something_else_are_refused(
    change: dict[str, Any], tmp_path: Path
) -> None:
    saved(tmp_path, named("base"))
    other: Any = named("base")
    (name, value), *_ = change.items()
    if name == "rope_theta":
        other.config.rope_parameters = {**other.config.rope_parameters, name: value}
    else:
        setattr(other.config, name, value)
    with pytest.raises(
        ctrl.CheckpointError, match=rf"whose config computes something else: {name} is .* there, .* here"
    ):
        ctrl.load(other, tmp_path)
    ctrl.load(other, tmp_path, allow_other_base=True)


OTHER_CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "scaled positions": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}}),
    "logits": ("gemma2", {"final_logit_softcapping": 1.0}),
    "kinds of layers": ("gemma2", {"layer_types": ["full_attention"] * 4}),
    "no window": ("mistral", {"sliding_window": None}),
    "positions by layer": ("smollm3", {"no_rope_layers": [0, 0, 0, 0]}),
    "residual": ("gpt_neox", {"use_parallel_residual": False}),
    "experts": ("mixtral", {"num_experts_per_tok": 1}),
    "attention scale": ("gpt2", {"scale_attn_weights": False}),
}


@pytest.mark.parametrize("kind", OTHER_CONFIGS)
def test_any_field_that_changes_the_logits_is_refused(kind: str, tmp_path: Path) -> None:
    family, changes = OTHER_CONFIGS[kind]
    base: Any = build(family)
    config = copy.deepcopy(base.config)
    for name, value in changes.items():
        setattr(config, name, value)
    other = type(base)(config).eval()
    other.load_state_dict(base.state_dict())
    assert not torch.equal(other(IDS).logits, base(IDS).logits)  # so loading onto it gives another model
    saved(tmp_path, base)
    reason = rf"whose config computes something else: .*{next(iter(changes))} is "
    with pytest.raises(ctrl.CheckpointError, match=reason):
        ctrl.load(other, tmp_path)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "dynamic", "factor": 2.0},
        {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4},
    ],
    ids=lambda rope: str(rope["rope_type"]),
)
def test_positions_that_depend_on_the_longest_text_are_compared(rope: dict[str, Any], tmp_path: Path) -> None:
    def base(longest: int) -> Any:
        torch.manual_seed(0)
        config = copy.deepcopy(named("base").config)
        config.rope_parameters = {"rope_theta": 1e4, "original_max_position_embeddings": 8, **rope}
        config.max_position_embeddings = longest
        return type(named("base"))(config).eval()

    longer = torch.arange(40)[None]
    assert not torch.equal(base(32)(longer).logits, base(36)(longer).logits)
    model = saved(tmp_path, base(32))
    with pytest.raises(ctrl.CheckpointError, match="max_position_embeddings is 32 there, 36 here"):
        ctrl.load(base(36), tmp_path)
    assert torch.equal(ctrl.load(base(32), tmp_path)(longer).logits, model(longer).logits)


def test_fields_that_compute_nothing_are_no_other_base(tmp_path: Path) -> None:
    """What trainers and tokenizers set, and keys that another version of transformers adds."""
    model = saved(tmp_path, named("base"))
    other: Any = named("renamed")
    changes = {"use_cache": False, "pad_token_id": 3, "attention_dropout": 0.1, "initializer_range": 1.0}
    for name, value in {**changes, "max_position_embeddings": 4096, "new_in_this_version": 1}.items():
        setattr(other.config, name, value)
    other.config.rope_parameters = {**other.config.rope_parameters, "new_here": 1}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(ctrl.load(other, tmp_path)(IDS).logits, model(IDS).logits)


def test_a_folder_without_these_fields_loads_as_before(tmp_path: Path) -> None:
    model = saved(tmp_path, named("base"))
    meta = json.loads((tmp_path / "control_config.json").read_text())
    assert {"rms_norm_eps", "hidden_act", "num_attention_heads", "rope_theta"} <= meta["base"].pop("computes").keys()
    (tmp_path / "control_config.json").write_text(json.dumps(meta))
    other: Any = named("base")
    other.config.rms_norm_eps = 1e-2
    assert torch.equal(ctrl.load(other, tmp_path)(IDS).logits, model(IDS).logits)  # the model is built already
