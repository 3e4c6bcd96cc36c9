"""The copy of a layer: relaxed norms, low rank, layers that cannot be copied."""

from __future__ import annotations

import copy
import functools
import pickle
import types
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

import ctrl
from ctrl import copies
from ctrl.config import ControlConfig
from ctrl.errors import ConfigError
from ctrl.layer import expanded_layers
from ctrl.structure import decoder_layers
from tests.helpers import reference
from tests.helpers.architectures import build as build_architecture
from tests.helpers.families import SHAPE, build, left_padded, perturb
from tests.helpers.readers import build_other
from tests.helpers.tiny_llama import IDS, disturbed, tiny


def test_relaxed_norm_is_the_formula() -> None:
    model = disturbed(norm_mix=0.25)
    norm = ctrl.layer.expanded_layers(model)[0].expanded.input_layernorm
    x = torch.randn(2, 3, 32)
    plain = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.variance_epsilon) * norm.weight
    torch.testing.assert_close(norm(x), 0.25 * x + 0.75 * plain)


@pytest.mark.parametrize("factor", [-2.0, -1e-3, 0.0, 0.7, 30.0])
def test_a_learned_norm_is_the_published_formula(factor: float) -> None:
    """c = clamp(2 sigmoid(f) - 1, 0, 1): a negative factor is the plain norm, a large one none."""
    model = disturbed(norm_mix="learned")
    norm = ctrl.layer.expanded_layers(model)[0].expanded.post_attention_layernorm
    with torch.no_grad():
        norm.interpolation_factor.fill_(factor)
    x = torch.randn(2, 3, 32)
    c = min(1.0, max(0.0, 2 * reference.sigmoid(factor) - 1))
    weight = norm.weight.detach().double().numpy()
    want = [
        reference.relaxed_norm_token(x[at].double().numpy(), weight, c, norm.variance_epsilon)
        for at in np.ndindex(2, 3)
    ]
    torch.testing.assert_close(norm(x).detach(), torch.from_numpy(np.array(want)).float().view(2, 3, 32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("expanded", ["full", "lora"])
def test_learned_norms_start_as_the_base_and_each_learns(expanded: str, dtype: torch.dtype) -> None:
    base: PreTrainedModel = tiny().eval().to(dtype)  # type: ignore[arg-type]
    expected = base(IDS).logits
    model = ctrl.expand(base, ctrl.ControlConfig(layers=2, norm_mix="learned", expanded=expanded))  # type: ignore[arg-type]
    assert torch.equal(model(IDS).logits, expected)
    model(IDS, labels=IDS).loss.backward()
    factors = {n: p for n, p in model.named_parameters() if n.endswith("norm.interpolation_factor")}
    assert len(factors) == 4  # two norms in each of two copies
    assert all(p.grad is not None and p.grad.any() for p in factors.values())
    assert {p.dtype for p in factors.values()} == {torch.float32}
    with ctrl.at_alpha(model, 1.0):
        assert torch.equal(model(IDS).logits, expected)  # the dial leaves the norms as they are


def test_low_rank_copies_start_as_the_base_and_train_alone() -> None:
    base = tiny().eval()
    model = ctrl.expand(copy.deepcopy(base), ctrl.ControlConfig(layers=2, expanded="lora", lora_rank=2))
    assert torch.equal(model(IDS).logits, base(IDS).logits)
    full = ctrl.expand(copy.deepcopy(base), ctrl.ControlConfig(layers=2))
    sizes = [sum(row.trainable for row in ctrl.describe(m)) for m in (model, full)]
    assert sizes[0] < sizes[1] / 4
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
    assert all(torch.equal(frozen[n], p) for n, p in model.named_parameters() if n in frozen)
    assert not torch.allclose(model(IDS).logits, base(IDS).logits)
    with ctrl.pretrained(model):
        assert torch.equal(model(IDS).logits, base(IDS).logits)


def test_the_low_rank_copies_of_a_model_of_conv1d() -> None:
    """GPT-2's projections are no nn.Linear, and hold their weights transposed."""
    base = build("gpt2")
    model = ctrl.expand(
        copy.deepcopy(base), ctrl.ControlConfig(layers=2, expanded="lora", lora_rank=2, alpha_start=1.0)
    )
    assert torch.equal(model(IDS).logits, base(IDS).logits)
    trained = {
        name.rpartition(".lora_")[0].rpartition(".")[2] for name, p in model.named_parameters() if p.requires_grad
    }
    assert trained == {"c_attn", "c_proj", "c_fc"}
    perturb(model)
    assert not torch.allclose(model(IDS).logits, base(IDS).logits, atol=0.01)
    torch.testing.assert_close(ctrl.merge_back(model)(IDS).logits, model(IDS).logits, rtol=1e-4, atol=1e-4)


def test_weights_that_no_adapter_reaches_are_named_once() -> None:
    """They were for each copy, since Python's own filter does not count here."""
    words = r"these weights of MixtralDecoderLayer stay as pretrained: mlp\.gate\.weight, mlp\.experts\.gate_up_proj, "
    with pytest.warns(UserWarning, match=rf"{words}mlp\.experts\.down_proj\. ") as said:
        model = ctrl.expand(build("mixtral"), ctrl.ControlConfig(layers=2, expanded="lora"))
    assert sum("stay as pretrained" in str(one.message) for one in said) == 1
    assert all("self_attn" in name for name, p in model.named_parameters() if p.requires_grad)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ctrl.expand(tiny(), ctrl.ControlConfig(layers=2, expanded="lora"))


def test_low_rank_copies_of_mamba_have_no_adapter_that_peft_refuses() -> None:
    model, ids = build_other("mamba"), torch.arange(8)[None]
    with torch.no_grad():
        before = model(input_ids=ids).logits
        with pytest.warns(UserWarning, match=r"of Mamba not out_proj, .* stay as pretrained: mixer\.A_log, .*out_proj"):
            expanded = ctrl.expand(model, ControlConfig(layers=1, expanded="lora"))
        torch.testing.assert_close(expanded(input_ids=ids).logits, before)
    adapted = {n.split(".lora_")[0].rpartition(".")[2] for n, p in expanded.named_parameters() if p.requires_grad}
    assert {"in_proj", "x_proj"} <= adapted
    assert "out_proj" not in adapted


def test_a_refused_low_rank_copy_leaves_the_base_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first copy was made, and its layer frozen, before the second was refused."""
    model, made = tiny(), []

    def second_fails(copied: nn.Module, rank: int) -> nn.Module:
        if made:
            raise ctrl.ConfigError("refused")
        made.append(copies_add_lora(copied, rank))
        return made[0]

    copies_add_lora = copies.add_lora
    monkeypatch.setattr(copies, "add_lora", second_fails)
    kinds = [type(m) for m in model.modules()]
    with pytest.raises(ctrl.ConfigError, match="refused"):
        ctrl.expand(model, ctrl.ControlConfig(layers=2, expanded="lora"))
    assert [type(m) for m in model.modules()] == kinds
    assert all(p.requires_grad for p in model.parameters())


def test_layers_without_a_matrix_to_adapt_are_refused_by_their_own_name() -> None:
    model = tiny()
    for layer in model.model.layers:
        for module in layer.modules():
            for name, child in list(module.named_children()):
                if isinstance(child, nn.Linear | Conv1D):
                    setattr(module, name, nn.Conv1d(2, 2, 1))
    with pytest.raises(ctrl.ConfigError, match="but LlamaDecoderLayer has none: use 'full'"):
        ctrl.expand(model, ctrl.ControlConfig(layers=2, expanded="lora"))


def _no_stack(model: PreTrainedModel) -> None:
    model.config.num_hidden_layers = 7


def _shared_keys(model: PreTrainedModel) -> None:
    decoder_layers(model)[1].self_attn.is_kv_shared_layer = True


def _other_names(model: PreTrainedModel) -> None:
    for layer in decoder_layers(model):
        layer.mlp.odd = layer.mlp.down_proj
        layer.mlp.forward = types.MethodType(lambda mlp, x: mlp.odd(x), layer.mlp)
        del layer.mlp.down_proj


def _calls_super(model: PreTrainedModel) -> None:
    class Derived(type(decoder_layers(model)[0])):  # type: ignore[misc]
        def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            return 2 * super().forward(hidden_states, *args, **kwargs)

    for layer in decoder_layers(model):
        layer.__class__ = Derived


def _calls_super_unseen(model: PreTrainedModel) -> None:
    """The call is inside a decorator, where the class that it starts from cannot be replaced."""

    def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def inner(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        return inner

    class Derived(type(decoder_layers(model)[0])):  # type: ignore[misc]
        @decorated
        def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            return super().forward(hidden_states, *args, **kwargs)

    for layer in decoder_layers(model):
        layer.__class__ = Derived


@pytest.mark.parametrize(
    ("odd", "structure", "message"),
    [
        (_no_stack, "concat", "has 0 stacks of 7 decoder layers that each own a cache slot"),
        (_shared_keys, "concat", "LlamaAttention reads another layer's keys and values"),
        (_other_names, "stack", "has no MLP down projection with a known name"),
        (_calls_super_unseen, "concat", r"a copy of layer 1, a Derived, does not run \(TypeError: super"),
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


def test_a_layer_that_calls_the_method_of_its_base_is_copied() -> None:
    """Llama 4's and PhiMoE's routers do. The copy has another class, from which its `super()` must start."""
    base = build("llama")
    _calls_super(base)
    ids = left_padded(pads=0)["input_ids"]
    want = base(input_ids=ids).logits
    model = ctrl.expand(base, ControlConfig(layers=[1, 3]))
    assert torch.equal(model(input_ids=ids).logits, want)
    copied = expanded_layers(model)[0].expanded
    perturb(model)
    x, positions = torch.randn(1, 3, 32), torch.arange(3)[None]
    rotary = model.model.rotary_emb(x, positions)
    plain = copy.deepcopy(copied)
    plain.__class__ = copies.plain_class(type(build("llama").model.layers[1]))
    found = copied(x, position_embeddings=rotary)
    torch.testing.assert_close(found, 2 * plain(x, position_embeddings=rotary))


def test_a_class_that_was_patched_after_an_expansion_is_copied_as_it_is_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a notebook: the copies ran the forward from before the patch, so the start was not the base."""
    before = ctrl.expand(tiny().eval(), ControlConfig(layers=2))
    attention: Any = tf.models.llama.modeling_llama.LlamaAttention
    old = attention.forward

    def forward(self: Any, hidden_states: Any, **kwargs: Any) -> Any:
        return old(self, hidden_states * 2, **kwargs)

    monkeypatch.setattr(attention, "forward", forward)
    base = tiny().eval()
    want = base(IDS).logits
    model = ctrl.expand(base, ControlConfig(layers=2))
    assert torch.equal(model(IDS).logits, want)
    monkeypatch.undo()
    assert torch.equal(ctrl.expand(tiny().eval(), ControlConfig(layers=2))(IDS).logits, before(IDS).logits)
    assert torch.equal(pickle.loads(pickle.dumps(before))(IDS).logits, before(IDS).logits)


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
    for value in ("learned", 0.1):
        model = ctrl.expand(build("llama"), ControlConfig(layers=2, structure="hybrid", norm_mix=value))  # type: ignore[arg-type]
        stacked, paired = (type(layer.expanded.input_layernorm).__name__ for layer in expanded_layers(model))
        assert (stacked, paired) == ("LlamaRMSNorm", "RelaxedLlamaRMSNorm")
    with ctrl.pretrained(model):
        ids = torch.tensor([[5, 6, 7]])
        assert torch.equal(model(input_ids=ids).logits, base(input_ids=ids).logits)


def test_a_norm_with_a_forward_of_its_own_cannot_be_relaxed() -> None:
    """Liger's and the hub's kernels set one on the instance, which would run in place of the relaxed norm's."""
    base = tiny()
    norm = base.model.layers[3].input_layernorm
    norm.forward = types.MethodType(type(norm).forward, norm)  # type: ignore[method-assign]
    with pytest.raises(
        ConfigError, match=r"norm_mix=0\.5: a LlamaRMSNorm has a forward of its own .* expand the model"
    ):
        ctrl.expand(base, ControlConfig(layers=[3], norm_mix=0.5))
    ctrl.expand(base, ControlConfig(layers=[3]))


@pytest.mark.parametrize("mix", [0.5, "learned"])
def test_norms_that_a_copy_has_not_are_said(mix: Any) -> None:
    """A layer of BERT has its norms inside of its attention's and its own output."""
    config = tf.BertConfig(vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, is_decoder=True)
    config.num_attention_heads = 4
    model = tf.BertLMHeadModel(config).eval()
    before = model(IDS).logits
    with pytest.raises(ConfigError, match="BertLayer has no norm of its own to relax"):
        ctrl.expand(model, ControlConfig(layers=1, norm_mix=mix))
    with pytest.raises(ConfigError, match="DbrxBlock has no norm of its own to relax"):  # a block is called a norm
        ctrl.expand(build_architecture("dbrx"), ControlConfig(layers=1, norm_mix=mix))
    assert torch.equal(model(IDS).logits, before)
