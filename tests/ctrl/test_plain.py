"""Plain models from stacked copies: refused where a class reads its layers' indices, else rebuilt by the config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

import ctrl
from tests.helpers.families import SHAPE, perturb
from tests.helpers.tiny_llama import IDS, tiny

MOE: dict[str, Any] = {**SHAPE, "moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}
MLA: dict[str, Any] = {
    **{**SHAPE, "num_key_value_heads": 4}, "moe_intermediate_size": 16, "n_routed_experts": 4, "n_group": 1,
    "topk_group": 1, "num_experts_per_tok": 2, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4, "v_head_dim": 8,
}  # fmt: skip


def indexed(name: str) -> Any:
    torch.manual_seed(0)
    if name == "diffllama":  # a constant of the attention follows from the index
        return tf.DiffLlamaForCausalLM(tf.DiffLlamaConfig(**SHAPE)).eval()
    if name == "qwen3_moe":  # indices of the layers without experts
        return tf.Qwen3MoeForCausalLM(tf.Qwen3MoeConfig(**MOE, mlp_only_layers=[3])).eval()
    return tf.DeepseekV3ForCausalLM(tf.DeepseekV3Config(**MLA, first_k_dense_replace=2)).eval()


@pytest.mark.parametrize("structure", ["stack", "hybrid"])
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("diffllama", r"layer 1 becomes layer 2, where the config gives self_attn\.lambda_init=0\.47"),
        ("qwen3_moe", r"layer 2 becomes layer 3, where the config gives mlp \(class\)=Qwen3MoeMLP"),
        ("deepseek_v3", r"layer 1 becomes layer 2, where the config gives mlp \(class\)=DeepseekV3MoE"),
    ],
)
def test_a_model_that_its_config_would_not_rebuild_is_refused(name: str, reason: str, structure: str) -> None:
    model = ctrl.expand(indexed(name), ctrl.ControlConfig(layers=2, structure=structure))  # type: ignore[arg-type]
    before = model(IDS).logits
    with pytest.raises(ctrl.ConfigError, match=reason):
        ctrl.merge_back(model, in_place=True)
    assert torch.equal(model(IDS).logits, before)  # refused before anything was taken apart
    assert model.config.num_hidden_layers == 4


def test_indices_that_still_fit_are_not_refused(tmp_path: Any) -> None:
    """A stacked copy behind the dense layers moves only layers that are built alike."""
    model = ctrl.expand(indexed("deepseek_v3"), ctrl.ControlConfig(layers=[2], structure="stack"))
    with pytest.warns(UserWarning, match="turns the copies into layers of the plain model"):
        merged = ctrl.merge_back(model)
    merged.save_pretrained(tmp_path)
    again = type(merged).from_pretrained(tmp_path)
    assert torch.equal(again(IDS).logits, merged(IDS).logits)
    assert torch.equal(merged(IDS).logits, model(IDS).logits)


@pytest.mark.filterwarnings("ignore:structure 'stack' has no branches")
@pytest.mark.parametrize("structure", ["stack", "hybrid"])
def test_inserted_layers_are_recorded_as_all_others(structure: Any, tmp_path: Path) -> None:
    """transformers sets its recording hooks in the first pass that needs them: here in the probe, for the routers."""
    torch.manual_seed(0)
    config = tf.MixtralConfig(**SHAPE, num_local_experts=4, output_router_logits=True, router_aux_loss_coef=1.0)
    model: Any = ctrl.expand(tf.MixtralForCausalLM(config).eval(), ctrl.ControlConfig(layers=2, structure=structure))
    with torch.no_grad():
        perturb(model)
    model(IDS, output_hidden_states=True)
    merged = ctrl.merge_back(model)
    merged.save_pretrained(tmp_path)
    again = type(merged).from_pretrained(tmp_path).eval()
    found, expected = (one(input_ids=IDS, labels=IDS, output_hidden_states=True) for one in (merged, again))
    assert len(found.hidden_states) == merged.config.num_hidden_layers + 1
    assert len(found.router_logits) == merged.config.num_hidden_layers
    assert all(map(torch.equal, found.hidden_states, expected.hidden_states))
    assert torch.equal(found.loss, expected.loss)


def test_concat_moves_no_layer() -> None:
    for name in ("diffllama", "qwen3_moe", "deepseek_v3"):
        ctrl.merge_back(ctrl.expand(indexed(name), ctrl.ControlConfig(layers=2)))


@pytest.mark.filterwarnings("ignore:structure 'stack' has no branches")
@pytest.mark.parametrize("structure", ["stack", "hybrid"])
def test_a_merge_in_place_leaves_a_config_that_others_share(structure: Any) -> None:
    first = tiny()
    second: Any = type(first)(first.config)
    depth = first.config.num_hidden_layers
    merged = ctrl.merge_back(ctrl.expand(first, ctrl.ControlConfig(layers=2, structure=structure)), in_place=True)
    own = {id(value) for m in merged.modules() for value in vars(m).values() if isinstance(value, tf.PreTrainedConfig)}
    assert merged.config.num_hidden_layers > depth
    assert own == {id(merged.config)} != {id(second.config)}
    assert second.config.num_hidden_layers == len(second.model.layers)
    assert second.generate(IDS[:1], max_new_tokens=2).shape == (1, IDS.shape[1] + 2)


@pytest.mark.filterwarnings("ignore:structure 'stack' has no branches")
def test_inserted_layers_are_checkpointed_as_all_others() -> None:
    """A layer that is checkpointed runs its attention a second time in the backward pass."""
    model: Any = ctrl.expand(tiny(), ctrl.ControlConfig(layers=2, structure="stack")).train()
    model.gradient_checkpointing_enable()
    merged: Any = ctrl.merge_back(model)
    runs: list[int] = []
    for slot, layer in enumerate(merged.model.layers):
        layer.self_attn.register_forward_hook(lambda *_, slot=slot: runs.append(slot))
    merged(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
    assert sorted(runs) == sorted(2 * list(range(merged.config.num_hidden_layers)))
