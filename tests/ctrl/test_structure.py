"""Where copies go, and what a model must have to be expanded."""

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
from torch.nn.utils import prune
from transformers import PreTrainedModel

import ctrl
from ctrl.config import ControlConfig
from ctrl.errors import ConfigError
from ctrl.structure import branch_kinds, decoder_layers, head_parameters, is_attention, place
from tests.helpers.architectures import build as build_architecture
from tests.helpers.families import FAMILIES, PAD, SHAPE, VOCAB, build, left_padded, perturb
from tests.helpers.tiny_llama import IDS, tiny


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


def _shared() -> PreTrainedModel:
    model = build("llama")
    model.model.layers[3].mlp = model.model.layers[1].mlp
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_t5, "T5ForConditionalGeneration is an encoder-decoder: expand needs a decoder-only"),
        (lambda: build_architecture("zamba"), "ZambaHybridLayer gets its cache slot as an argument"),
        (lambda: build_architecture("zamba2"), "Zamba2HybridLayer gets its cache slot as an argument"),
        (lambda: build_architecture("reformer"), "ReformerLayer reads prev_attn_output before the hidden state"),
        (_shared, r"layers \[1, 3\] of LlamaDecoderLayer share parameters, so a copy of layer 3 is no copy"),
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


def _pruned(module: torch.nn.Module) -> None:
    prune.l1_unstructured(module, "weight", 0.5)


COMPUTED = (_pruned, torch.nn.utils.weight_norm, torch.nn.utils.parametrizations.weight_norm)


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("compute", COMPUTED)
def test_weights_that_are_computed_in_each_pass_are_refused(compute: Callable[[torch.nn.Module], object]) -> None:
    """A copy of one would stay as it was computed; before expand it has hooks, which copies do not get."""
    model, match = build("llama"), r"mlp.up_proj, whose weight is computed in each pass .* torch.nn.utils.prune.remove"
    compute(model.model.layers[0].mlp.up_proj)
    with pytest.raises(ConfigError, match=f"expand cannot copy LlamaDecoderLayer's {match}"):
        ctrl.expand(model, ControlConfig(layers=[0]))
    ctrl.expand(model, ControlConfig(layers=[1]))  # another layer may have them
    with pytest.raises(ConfigError, match=match):
        ctrl.reference(model)
    copies = ctrl.expand(build("llama"), ControlConfig(layers=[1]))
    compute(copies.model.layers[1].expanded.mlp.up_proj)
    for in_place in (False, True):
        with pytest.raises(ConfigError, match=f"merge_back cannot copy LlamaDecoderLayer's expanded.{match}"):
            ctrl.merge_back(copies, in_place=in_place)


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


def reward_model(seed: int) -> Any:
    """A classifier on the decoder of `tiny`, with a head of its own."""
    torch.manual_seed(seed)
    model = tf.LlamaForSequenceClassification(tiny().config)
    model.model.load_state_dict(tiny().model.state_dict())
    return model


def test_a_head_that_is_new_trains_and_travels_with_the_copies(tmp_path: Path) -> None:
    """Elsewhere from_pretrained makes another one, on the same decoder."""
    model = ctrl.expand(reward_model(1), ctrl.ControlConfig(layers=1)).train()
    model(input_ids=IDS, labels=torch.tensor([0, 1])).loss.backward()
    assert model.score.weight.grad.abs().sum() > 0
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.eval().score.requires_grad_(False)
    expected = model(IDS).logits
    loaded = ctrl.load(reward_model(2), ctrl.save(model, tmp_path))
    assert torch.equal(loaded.eval()(IDS).logits, expected)
    assert torch.equal(ctrl.merge_back(model, alpha=0.5).score.weight, model.score.weight)
    second = ctrl.expand(reward_model(3), ctrl.ControlConfig(layers=1)).eval()
    untrained = ctrl.swap(second, tmp_path)
    assert torch.equal(second(IDS).logits, expected)
    first = ctrl.swap(loaded, untrained)
    assert not torch.equal(loaded(IDS).logits, expected)
    ctrl.swap(loaded, first)
    assert torch.equal(loaded(IDS).logits, expected)


def test_a_language_model_s_head_stays_frozen() -> None:
    assert not head_parameters(tiny())
    assert not head_parameters(tiny().model)
    assert list(head_parameters(reward_model(1))) == ["score.weight"]


def masked() -> Any:
    torch.manual_seed(0)
    return tf.BertForMaskedLM(tf.BertConfig(**SHAPE, attention_probs_dropout_prob=0.0, hidden_dropout_prob=0.0)).eval()


def test_the_head_of_a_masked_language_model_stays_frozen_too(tmp_path: Path) -> None:
    """It is a pretrained one, next to embeddings that it shares. Folders of when it trained are still read."""
    base, want = masked(), masked()(IDS).logits
    model = ctrl.expand(base, ControlConfig(layers=2))
    assert all("expanded" in name for name, p in model.named_parameters() if p.requires_grad)
    earlier = masked()
    earlier.get_output_embeddings = lambda: None
    ctrl.expand(earlier, ControlConfig(layers=2))
    for one in (model, earlier):
        perturb(one)
    with ctrl.pretrained(model):
        assert torch.equal(model(IDS).logits, want)
    assert not torch.equal(earlier.cls.predictions.bias, base.cls.predictions.bias)
    ctrl.save(earlier, tmp_path)
    assert torch.equal(ctrl.load(masked(), tmp_path)(IDS).logits, earlier(IDS).logits)
