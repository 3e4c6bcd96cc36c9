"""unload gives the base back, swap exchanges expansions in place: each is then what it was alone."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM

import ctrl
from ctrl.errors import ControlWarning
from ctrl.expansion import take_off
from ctrl.layer import expanded_layers
from tests.helpers.families import EVERY, build, perturb
from tests.helpers.quantised import QUANTISED
from tests.helpers.tiny_llama import IDS, disturbed, expanded, tiny
from tests.helpers.trainers import hf_trainer, whole_batch

Use = Callable[[Any], Any]
EXPANSIONS: list[dict[str, Any]] = [
    {"layers": 2},
    {"layers": [0, 1, 2], "interpolation": "dlerp", "alpha": "learned"},
    {"structure": "hybrid"},
    {"structure": "stack"},
    {"expanded": "lora", "layers": [3]},
    {"norm_mix": "learned", "divergence": "cosine"},
    {"divergence": "attention"},
]


def base() -> Any:
    model = tiny().eval()
    model.set_attn_implementation("eager")
    return model


def grown(seed: int, **settings: Any) -> Any:
    model: Any = ctrl.expand(base(), ctrl.ControlConfig(**{"layers": 2, **settings}))
    torch.manual_seed(seed)
    perturb(model)
    return model


@pytest.mark.parametrize("settings", EXPANSIONS, ids=str)
def test_unload_gives_the_base_back(settings: dict[str, Any]) -> None:
    model, plain = grown(1, **settings), base()
    assert not torch.equal(model(IDS).logits, plain(IDS).logits)
    again = ctrl.unload(model)
    assert again is model
    assert type(again) is type(plain)
    assert again.config.to_dict() == plain.config.to_dict()
    assert [name for name, _ in again.named_parameters()] == [name for name, _ in plain.named_parameters()]
    assert all(p.requires_grad for p in again.parameters())
    assert not any(m._forward_hooks for m in again.modules())
    assert torch.equal(again(IDS).logits, plain(IDS).logits)
    assert torch.equal(again.generate(IDS, max_new_tokens=4), plain.generate(IDS, max_new_tokens=4))
    ctrl.expand(again, ctrl.ControlConfig(layers=2))  # as any base


@pytest.mark.parametrize("family", EVERY)
def test_every_family_is_given_back(family: str) -> None:
    plain = build(family).eval()
    expected = plain(input_ids=IDS).logits
    model = ctrl.expand(plain, ctrl.ControlConfig(layers=2))
    perturb(model)
    assert torch.equal(ctrl.unload(model)(input_ids=IDS).logits, expected)


@pytest.mark.slow
def test_expansions_take_turns_on_one_base(tmp_path: Path) -> None:
    """From folders and from memory, in any order; each trains, saves and generates as it did alone."""
    alone = [grown(seed, **settings) for seed, settings in enumerate(EXPANSIONS)]
    folders = [ctrl.save(model, tmp_path / str(number)) for number, model in enumerate(alone)]
    kept: dict[int, Any] = {}
    model, active = base(), None
    for number in (0, 1, 2, 3, 4, 5, 6, 0, 4, 1, 6, 2):
        former = ctrl.swap(model, kept.pop(number, folders[number]))
        assert (former is None) == (active is None)
        if active is not None:
            kept[active] = former
        active = number
        assert torch.equal(model(IDS).logits, alone[number](IDS).logits)
        out, expected = model.train()(**whole_batch()), alone[number].train()(**whole_batch())
        assert torch.equal(out.loss, expected.loss)
        tokens = [one.eval().generate(IDS, max_new_tokens=4) for one in (model, alone[number])]
        assert torch.equal(*tokens)
        trained = {name for name, p in model.named_parameters() if p.requires_grad}
        assert trained == {name for name, p in alone[number].named_parameters() if p.requires_grad}
        assert str(ctrl.describe(model)) == str(ctrl.describe(alone[number]))
    assert torch.equal(ctrl.unload(model)(IDS).logits, base()(IDS).logits)


def test_what_trains_is_the_same_after_a_turn(tmp_path: Path) -> None:
    """Parts of the base that were unfrozen train on, parts of copies that were frozen do not."""
    model, other = grown(1), take_off(grown(2, layers=[0]))
    model.get_input_embeddings().requires_grad_(True)
    for layer in expanded_layers(model):
        layer.expanded.mlp.requires_grad_(False)
    before = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    former = ctrl.swap(model, other)
    assert former is not None
    assert not model.get_input_embeddings().weight.requires_grad
    ctrl.swap(model, former)
    loaded = ctrl.load(base(), ctrl.save(model, tmp_path))
    for one in (model, loaded):
        assert {name for name, parameter in one.named_parameters() if parameter.requires_grad} == before


def test_weights_that_trained_meanwhile_are_kept(tmp_path: Path) -> None:
    model = expanded()
    first = ctrl.swap(model, ctrl.save(disturbed(seed=6), tmp_path / "other"))
    hf_trainer(model, tmp_path / "out").train()
    trained = model.eval()(IDS).logits
    second = ctrl.swap(model, first)  # type: ignore[arg-type]
    assert torch.equal(model(IDS).logits, expanded().eval()(IDS).logits)
    ctrl.swap(model, second)  # type: ignore[arg-type]
    assert torch.equal(model(IDS).logits, trained)


def other_weights(folder: Path) -> Any:
    return take_off(ctrl.expand(tiny(seed=1), ctrl.ControlConfig(layers=2)))


def other_depth(folder: Path) -> Any:
    config = tiny().config
    config.num_hidden_layers = 6
    return take_off(ctrl.expand(LlamaForCausalLM(config), ctrl.ControlConfig(layers=2)))


def other_positions(folder: Path) -> Any:
    """The same weights under a config that computes something else with them."""
    plain: Any = tiny()
    plain.config.rope_parameters = {**plain.config.rope_parameters, "rope_theta": 5e5}
    return take_off(ctrl.expand(plain, ctrl.ControlConfig(layers=2)))


def no_folder(folder: Path) -> Any:
    return folder / "nothing"


def folder_of_another_base(folder: Path) -> Any:
    return ctrl.save(ctrl.expand(tiny(seed=1), ctrl.ControlConfig(layers=2)), folder)


@pytest.mark.parametrize(
    ("other", "error", "reason"),
    [
        (other_weights, ctrl.ConfigError, "made on another base model, or on other weights"),
        (other_depth, ctrl.ConfigError, "made on another base model"),
        (other_positions, ctrl.ConfigError, "whose config computes something else: rope_theta is 500000.0 there"),
        (no_folder, ctrl.CheckpointError, r"has no control_config\.json"),
        (folder_of_another_base, ctrl.CheckpointError, "the weights of this base"),
    ],
)
def test_what_cannot_be_put_on_leaves_the_model_as_it_was(
    other: Callable[[Path], Any], error: type[Exception], reason: str, tmp_path: Path
) -> None:
    model = grown(1)
    expected = model(IDS).logits
    with pytest.raises(error, match=reason):
        ctrl.swap(model, other(tmp_path))
    assert torch.equal(model(IDS).logits, expected)
    assert model(**whole_batch()).divergence is not None
    if other in (other_weights, other_positions, folder_of_another_base):
        ctrl.swap(model, other(tmp_path), allow_other_base=True)


def test_two_models_never_share_an_expansion() -> None:
    """They would share its switches: ctrl.pretrained of one would hold for the other, and both would train one copy."""
    first, second, plain = grown(1), base(), base()
    kept = take_off(first)
    ctrl.swap(second, kept)
    expected = second(IDS).logits
    for other in (plain, first):
        with pytest.raises(ctrl.ConfigError, match=r"another model has this expansion: ctrl\.swap or"):
            ctrl.swap(other, kept)
    ctrl.swap(plain, copy.deepcopy(kept))
    with ctrl.pretrained(plain):
        assert torch.equal(second(IDS).logits, expected)
    assert torch.equal(plain(IDS).logits, expected)
    back = ctrl.swap(second, kept)  # onto its own model: it is taken off first
    assert torch.equal(second(IDS).logits, expected)
    del second
    ctrl.swap(first, back)  # type: ignore[arg-type]  # its model is gone
    assert torch.equal(first(IDS).logits, expected)


def offloaded(model: Any) -> Any:
    accelerate.cpu_offload(model)
    return model


def with_adapters(model: Any) -> Any:
    with pytest.warns(UserWarning, match="PEFT freezes the copies"):
        return get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))


USES: list[Use] = [ctrl.unload, lambda model: ctrl.swap(model, "folder")]


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("block", [ctrl.diagnostics, ctrl.collect_divergence])
def test_nothing_is_exchanged_inside_a_block_that_would_miss_the_passes_after_it(use: Use, block: Use) -> None:
    model = grown(1)
    with block(model) as seen:
        with pytest.raises(ctrl.ConfigError, match=f"ctrl.{block.__name__} is open on this model .* end that block"):
            use(model)
        model(**whole_batch())
    assert len(seen.rows if block is ctrl.diagnostics else seen.passes[0].divergences) == 2
    ctrl.unload(model)


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize(
    ("wrap", "reason"),
    [(offloaded, "is sharded or offloaded, so its copies"), (with_adapters, "holds a PEFT adapter")],
)
def test_what_cannot_be_taken_off_is_refused(use: Use, wrap: Use, reason: str) -> None:
    model = wrap(grown(1))
    with pytest.raises(ctrl.ConfigError, match=reason):
        use(model)
    assert len(ctrl.describe(model)) == 2


def test_a_plain_model_has_nothing_to_unload() -> None:
    with pytest.raises(ctrl.ConfigError, match="is not expanded"):
        ctrl.unload(tiny())


@pytest.mark.parametrize("settings", [{}, {"expanded": "lora"}, {"copies_dtype": "base"}])
@pytest.mark.parametrize(("made_on", "onto"), [("float32", "bfloat16"), ("bfloat16", "float32"), ("bfloat16",) * 2])
def test_what_was_put_on_a_base_of_another_type_is_what_a_load_gives(
    settings: dict[str, Any], made_on: str, onto: str, tmp_path: Path
) -> None:
    """Copies in fp32 next to bf16 layers compute rounded; those of a base in fp32 would not, and are refused."""
    first, second, third = (tiny().to(getattr(torch, dtype)).eval() for dtype in (made_on, onto, onto))
    model: Any = ctrl.expand(first, ctrl.ControlConfig(layers=2, **settings))
    perturb(model)
    expansion = take_off(model)
    if settings.get("expanded") != "lora" and (made_on, onto) == ("float32", "bfloat16"):
        with pytest.raises(ctrl.ConfigError, match=r"made on a base in fp32, this one is in torch.bfloat16.*ctrl.save"):
            ctrl.swap(second, expansion)
        return
    if settings.get("copies_dtype") == "base" and made_on != onto:
        return  # copies in bf16 next to fp32 layers
    ctrl.swap(second, expansion)
    ctrl.save(second, tmp_path)
    assert torch.equal(second(IDS).logits, ctrl.load(third, tmp_path)(IDS).logits)


def rope_in_fp32(model: Any) -> Any:
    for module in model.modules():
        module._buffers.update({name: b.float() for name, b in module._buffers.items() if "inv_freq" in name})
    return model


def no_sampling(model: Any) -> Any:
    model.generation_config.update(repetition_penalty=1.5)
    return model


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (lambda: tiny().bfloat16(), tiny),
        (QUANTISED["fake int8"], lambda: build("llama")),
        (lambda: tiny().bfloat16(), lambda: rope_in_fp32(tiny().bfloat16())),
        (tiny, lambda: no_sampling(tiny())),
    ],
    ids=["type", "quantised", "buffers", "generation"],
)
def test_a_swap_warns_of_what_a_load_warns_of(first: Any, second: Any, tmp_path: Path) -> None:
    """Outputs are others on such a base. What had waited in memory came onto it without a word."""
    model = ctrl.expand(first().eval(), ctrl.ControlConfig(layers=2))
    ctrl.save(model, tmp_path)
    with pytest.warns(ControlWarning) as loaded:
        ctrl.load(second().eval(), tmp_path)
    said = [str(w.message).removeprefix(f"{tmp_path}: ") for w in loaded if issubclass(w.category, ControlWarning)]
    held = take_off(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ctrl.swap(model, held)  # onto its own base
    with pytest.warns(ControlWarning) as swapped:
        ctrl.swap(second().eval(), take_off(model))
    assert set(said) == {str(w.message) for w in swapped if issubclass(w.category, ControlWarning)}


def test_a_base_of_which_one_row_was_trained_gets_no_other_expansion(tmp_path: Path) -> None:
    """A trained token, or PEFT's trainable_token_indices merged: no sampled value shows it."""
    config = ctrl.ControlConfig(layers=2)
    model, other = ctrl.expand(tiny(), config), ctrl.save(ctrl.expand(tiny(), ctrl.ControlConfig(layers=1)), tmp_path)
    with torch.no_grad():
        model.get_input_embeddings().weight[7, 1] += 0.5
    before = model(IDS).logits
    with pytest.raises(ctrl.ConfigError, match=r"1 weights of the base have changed .* .first: model.embed_tokens"):
        ctrl.swap(model, other)
    assert torch.equal(model(IDS).logits, before)
    ctrl.swap(model, other, allow_other_base=True)
    assert [layer.index for layer in expanded_layers(model)] == [3]
