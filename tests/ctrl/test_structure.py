"""Where copies go, what a model must have to be expanded, and how expand reports what it did."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel

import ctrl
from ctrl.config import ControlConfig
from ctrl.errors import ConfigError
from ctrl.layer import expanded_layers
from ctrl.structure import branch_kinds, decoder_layers, is_attention, place
from tests.helpers.families import FAMILIES, PAD, SHAPE, VOCAB, build, left_padded, perturb


class TestPlace:
    @pytest.mark.parametrize(
        ("layers", "total", "want"),
        [(8, 32, [3, 7, 11, 15, 19, 23, 27, 31]), (2, 4, [1, 3]), (1, 5, [4]), (4, 30, [6, 14, 21, 29])],
    )
    def test_places_by_hand(self, layers: int, total: int, want: list[int]) -> None:
        """The first is the paper's: 8 of 32, every fourth layer."""
        assert place(layers, total) == want

    @given(st.data())
    def test_as_many_as_asked_spread_to_the_last(self, data: st.DataObject) -> None:
        total = data.draw(st.integers(1, 130))
        count = data.draw(st.integers(1, total))
        found = place(count, total)
        assert len(set(found)) == count
        assert found == sorted(found)
        assert found[0] >= 0
        assert found[-1] == total - 1
        gaps = [after - before for before, after in zip([-1, *found], found, strict=False)]
        assert max(gaps) - min(gaps) <= 1

    @given(step=st.integers(1, 12), count=st.integers(1, 12))
    def test_every_step_th_layer_where_the_count_divides(self, step: int, count: int) -> None:
        """Reference fault 8: the layers l with (l + 1) divisible by L / n."""
        total = step * count
        assert place(count, total) == [layer for layer in range(total) if (layer + 1) % step == 0]

    def test_a_list_is_taken_as_it_is(self) -> None:
        assert place([5, 0, 2], 6) == [0, 2, 5]

    def test_negative_indices_count_from_the_end(self) -> None:
        assert place([-1, -2, 0], 6) == [0, 4, 5]
        with pytest.raises(ConfigError, match=r"layers=\[-1, 5\]: of 6 layers two of these are the same"):
            place([-1, 5], 6)
        with pytest.raises(ConfigError, match=r"the model has layers 0\.\.5, but not \[-7\]"):
            place([-7], 6)

    def test_the_last_layers_of_any_model(self, tiny_llama: PreTrainedModel, tmp_path: Path) -> None:
        base, count = copy.deepcopy(tiny_llama), len(tiny_llama.model.layers)
        model = ctrl.expand(tiny_llama, ControlConfig(layers=[-1, -2]))
        assert model.control.layers == [count - 2, count - 1]
        assert ctrl.load(base, ctrl.save(model, tmp_path / "saved")).control.layers == [count - 2, count - 1]

    def test_too_many_or_beyond(self) -> None:
        with pytest.raises(ConfigError, match=r"layers=5: the model has 4 layers, give a count in 1\.\.4"):
            place(5, 4)
        with pytest.raises(ConfigError, match=r"layers=\[1, 4, 9\]: the model has layers 0\.\.3, but not \[4, 9\]"):
            place([1, 4, 9], 4)

    def test_hybrid_alternates_from_stack(self) -> None:
        assert branch_kinds(ControlConfig(structure="hybrid"), 3) == ["stack", "concat", "stack"]
        assert branch_kinds(ControlConfig(structure="concat"), 2) == ["concat", "concat"]


@pytest.mark.parametrize("family", list(FAMILIES))
class TestEveryFamily:
    def test_layers_are_found(self, family: str) -> None:
        assert len(decoder_layers(build(family))) == 4

    def test_a_layer_has_one_attention_and_is_none_itself(self, family: str) -> None:
        for layer in decoder_layers(build(family)):
            found = [type(m).__name__ for m in layer.modules() if is_attention(m)]
            assert len(found) == 1
            assert "attention" in found[0].lower()

    def test_layers_are_found_again_in_an_expanded_model(self, family: str) -> None:
        model = ctrl.expand(build(family), ControlConfig(layers=2))
        assert len(decoder_layers(model)) == 4


def _t5() -> PreTrainedModel:
    return tf.T5ForConditionalGeneration(
        tf.T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=16, num_layers=2, num_heads=2)
    )


def _mamba() -> PreTrainedModel:
    config = tf.MambaConfig(
        vocab_size=VOCAB, hidden_size=16, state_size=4, num_hidden_layers=3, pad_token_id=PAD, eos_token_id=None
    )
    return tf.MambaForCausalLM(config)


def _qwen3_next() -> PreTrainedModel:
    config = tf.Qwen3NextConfig(
        **SHAPE, head_dim=16, linear_key_head_dim=8, linear_value_head_dim=8, linear_num_key_heads=2,
        linear_num_value_heads=4, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16,
        shared_expert_intermediate_size=16, layer_types=["linear_attention", "full_attention"] * 2,
    )  # fmt: skip
    return tf.Qwen3NextForCausalLM(config)


def _gpt2_by_index() -> PreTrainedModel:
    return tf.GPT2LMHeadModel(
        tf.GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, scale_attn_by_inverse_layer_idx=True)
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_t5, "T5ForConditionalGeneration is an encoder-decoder: expand needs a decoder-only"),
        (_gpt2_by_index, "scale_attn_by_inverse_layer_idx=True: .* set it to False"),
    ],
)
def test_models_that_would_go_wrong_are_refused(make: Callable[[], PreTrainedModel], message: str) -> None:
    model = make()
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    with pytest.raises(ConfigError, match=message):
        ctrl.expand(model, ControlConfig(layers=1))
    assert {name: p.requires_grad for name, p in model.named_parameters()} == before


@pytest.mark.parametrize("values", [{"layers": 9}, {"layers": [4]}, {"divergence": "attention"}])
def test_a_refused_expansion_leaves_the_model_as_it_was(values: dict[str, Any]) -> None:
    model = build("llama")
    kinds = [type(m) for m in model.modules()]
    with pytest.raises(ConfigError, match=r"layers=|attn_implementation='eager'"):
        ctrl.expand(model, ControlConfig(**values))
    assert [type(m) for m in model.modules()] == kinds
    assert all(p.requires_grad for p in model.parameters())


def _no_stack(model: PreTrainedModel) -> None:
    model.config.num_hidden_layers = 7


def _shared_keys(model: PreTrainedModel) -> None:
    decoder_layers(model)[1].self_attn.is_kv_shared_layer = True


def _other_names(model: PreTrainedModel) -> None:
    for layer in decoder_layers(model):
        layer.mlp.odd = layer.mlp.down_proj
        layer.mlp.forward = lambda x, mlp=layer.mlp: mlp.odd(x)
        del layer.mlp.down_proj


def _calls_super(model: PreTrainedModel) -> None:
    class Derived(type(decoder_layers(model)[0])):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return super().forward(*args, **kwargs)

    for layer in decoder_layers(model):
        layer.__class__ = Derived


@pytest.mark.parametrize(
    ("odd", "structure", "message"),
    [
        (_no_stack, "concat", "has 0 stacks of 7 decoder layers that each own a cache slot"),
        (_shared_keys, "concat", "LlamaAttention reads another layer's keys and values"),
        (_other_names, "stack", "has no MLP down projection with a known name"),
        (_calls_super, "concat", r"Derived\.forward calls super\(\), so its layers cannot be copied"),
    ],
)
def test_layers_that_cannot_be_copied_are_refused(
    odd: Callable[[PreTrainedModel], None], structure: str, message: str
) -> None:
    model = build("llama")
    odd(model)
    before = [name for name, _ in model.named_parameters()]
    with pytest.raises(ConfigError, match=message):
        ctrl.expand(model, ControlConfig(layers=2, structure=structure))  # type: ignore[arg-type]
    assert [name for name, _ in model.named_parameters()] == before
    assert all(p.requires_grad for p in model.parameters())


def _gpt_oss() -> PreTrainedModel:
    return tf.GptOssForCausalLM(
        tf.GptOssConfig(**SHAPE, head_dim=8, num_local_experts=4, num_experts_per_tok=2, rope_parameters=None)
    )


def _doge() -> PreTrainedModel:
    return tf.DogeForCausalLM(tf.DogeConfig(**SHAPE))


def _doge_experts() -> PreTrainedModel:
    return tf.DogeForCausalLM(tf.DogeConfig(**SHAPE, is_moe=True, num_experts=4, num_experts_per_tok=2))


@torch.no_grad()
def noisy(make: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    model = make()
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    return model


def test_biases_beside_bare_expert_weights_are_zeroed_too() -> None:
    base = noisy(_gpt_oss).eval()
    ids = left_padded(pads=0)["input_ids"]
    model = ctrl.expand(copy.deepcopy(base), ControlConfig(layers=2, structure="stack"))
    assert torch.equal(model(input_ids=ids).logits, base(input_ids=ids).logits)


@pytest.mark.parametrize("structure", ["stack", "hybrid"])
@pytest.mark.parametrize("make", [_doge, _doge_experts])
def test_a_stacked_copy_that_is_not_the_identity_is_refused(
    make: Callable[[], PreTrainedModel], structure: str
) -> None:
    """Doge scales its residuals; its routed experts write past the down projection."""
    model = noisy(make)
    kinds, modes = [type(m) for m in model.modules()], [m.training for m in model.modules()]
    attention, state = model.config._attn_implementation, torch.get_rng_state()
    with pytest.raises(ConfigError, match=r"the copy of layer 1, a DogeDecoderLayer .* changes its input by up to \d"):
        ctrl.expand(model, ControlConfig(layers=2, structure=structure))  # type: ignore[arg-type]
    assert [type(m) for m in model.modules()] == kinds
    assert [m.training for m in model.modules()] == modes
    assert not any(m._forward_pre_hooks for m in model.modules())
    assert all(p.requires_grad for p in model.parameters())
    assert model.config._attn_implementation == attention
    assert torch.equal(torch.get_rng_state(), state)
    ctrl.expand(model, ControlConfig(layers=2))


def test_relaxed_norms_are_for_copies_beside_a_layer() -> None:
    with pytest.raises(
        ConfigError, match=r"norm_mix=0\.1: stacked copies keep plain norms, structure 'stack' needs norm_mix=0"
    ):
        ctrl.expand(build("llama"), ControlConfig(layers=2, structure="stack", norm_mix=0.1))
    base = build("llama")
    for value in ("alpha", 0.1):
        model = ctrl.expand(build("llama"), ControlConfig(layers=2, structure="hybrid", norm_mix=value))  # type: ignore[arg-type]
        stacked, paired = (type(layer.expanded.input_layernorm).__name__ for layer in expanded_layers(model))
        assert (stacked, paired) == ("LlamaRMSNorm", "RelaxedLlamaRMSNorm")
    with ctrl.pretrained(model):
        ids = torch.tensor([[5, 6, 7]])
        assert torch.equal(model(input_ids=ids).logits, base(input_ids=ids).logits)


@pytest.mark.parametrize("make", [_mamba, _qwen3_next])
def test_recurrent_layers_generate_with_a_cache(make: Callable[[], PreTrainedModel]) -> None:
    """Layers without attention keep a recurrent state in their cache slot; a copy needs a slot of that kind."""
    model = ctrl.expand(make().eval(), ControlConfig(layers=[0, 1]))
    perturb(model)
    inputs = left_padded(pads=0)
    ids = inputs["input_ids"]
    with torch.no_grad():
        for _ in range(12):
            ids = torch.cat([ids, model(input_ids=ids, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(model.generate(**inputs, max_new_tokens=12, do_sample=False), ids)


def test_expanding_twice_is_refused() -> None:
    model = ctrl.expand(build("llama"), ControlConfig(layers=1))
    with pytest.raises(ConfigError, match="expanded already: expand a new base model, or call merge_back first"):
        ctrl.expand(model)


@pytest.mark.parametrize("use", [ctrl.describe, ctrl.merge_back, lambda m: ctrl.pretrained(m).__enter__()])
def test_a_plain_model_is_refused_by_name(use: Callable[[PreTrainedModel], object]) -> None:
    with pytest.raises(ConfigError, match=r"LlamaForCausalLM is not expanded: call ctrl\.expand\("):
        use(build("llama"))


def test_pretrained_is_left_after_an_error() -> None:
    model = ctrl.expand(build("llama"), ControlConfig(layers=1))
    with pytest.raises(KeyError, match="inside"), ctrl.pretrained(model):
        raise KeyError("inside")
    ids = torch.tensor([[5, 6, 7]])
    assert model(input_ids=ids, labels=ids).divergence is not None


def test_a_share_is_held_inside_the_block_alone() -> None:
    base = build("llama")
    model = ctrl.expand(copy.deepcopy(base), ControlConfig(layers=2, interpolation="dlerp")).eval()
    for layer in expanded_layers(model):
        with torch.no_grad():
            for parameter in layer.expanded.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    ids = torch.tensor([[5, 6, 7]])
    before = model(input_ids=ids).logits
    with ctrl.at_alpha(model, 0.0):
        torch.testing.assert_close(model(input_ids=ids).logits, base.eval()(input_ids=ids).logits)
        with ctrl.at_alpha(model, 0.5):  # what alpha starts at
            torch.testing.assert_close(model(input_ids=ids).logits, before)
        with ctrl.at_alpha(model, 1.0):
            assert (model(input_ids=ids).logits - before).abs().max() > 0.01
        torch.testing.assert_close(model(input_ids=ids).logits, base(input_ids=ids).logits)
    with pytest.raises(KeyError, match="inside"), ctrl.at_alpha(model, 0.0):
        raise KeyError("inside")
    assert torch.equal(model(input_ids=ids).logits, before)


def test_a_stacked_layer_has_no_share() -> None:
    model = ctrl.expand(build("llama"), ControlConfig(layers=2, structure="hybrid"))
    with pytest.raises(ConfigError, match=r"at_alpha needs layers that mix .* layers \[\d\] are stacked"):
        ctrl.at_alpha(model, 0.5).__enter__()


def test_a_share_that_is_no_number_is_refused() -> None:
    model = ctrl.expand(build("llama"), ControlConfig(layers=1))
    with pytest.raises(ConfigError, match="alpha=nan is not finite: give a number"):
        ctrl.at_alpha(model, float("nan")).__enter__()


def test_describe_names_layers_branches_and_alpha() -> None:
    base = build("llama")
    one_layer = sum(p.numel() for p in base.model.layers[0].parameters())
    rows = ctrl.describe(ctrl.expand(base, ControlConfig(structure="hybrid", layers=2, alpha_start=0.25)))
    assert [(row.layer, row.branch, row.trainable) for row in rows] == [
        (1, "stack", one_layer),
        (3, "concat", one_layer),
    ]
    assert rows[0].alpha is None
    assert rows[1].alpha == pytest.approx(0.25)
    table = str(rows).splitlines()
    assert len(table) == 4
    assert f"{2 * one_layer:,}" in table[-1]
    assert "0.250" in table[2]


def test_what_an_interpolation_learns_trains_too() -> None:
    model = ctrl.expand(build("llama"), ControlConfig(layers=[1], interpolation="dlerp", alpha="learned"))
    added = sum(p.numel() for p in model.parameters() if p.requires_grad and p.numel() in (1, 2 * SHAPE["hidden_size"]))
    assert added >= 1 + 2 * SHAPE["hidden_size"]
    names = {name.split(".")[-1] for name, p in model.named_parameters() if p.requires_grad and "interpolation" in name}
    assert names == {"theta", "weight"}
