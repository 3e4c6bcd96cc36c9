"""Save and load: what was saved comes back onto its base, and onto no other."""

from __future__ import annotations

import contextlib
import copy
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
import transformers as tf
from huggingface_hub.errors import StrictDataclassError
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

import ctrl
from ctrl.checkpoint import read_tensors
from ctrl.interpolation import INTERPOLATIONS
from tests.helpers.tiny_llama import IDS, disturbed, tiny
from tests.helpers.trainers import tokenizer


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"structure": "stack"},
        {"structure": "hybrid"},
        {"interpolation": "dlerp", "alpha": "learned"},
        *({"interpolation": name} for name in INTERPOLATIONS),
        {"norm_mix": 0.2},
        {"norm_mix": "learned"},
        {"expanded": "lora"},
    ],
)
def test_reloaded_equals_saved(tmp_path: Path, kwargs: dict[str, object]) -> None:
    model = disturbed(**kwargs)
    ctrl.save(model, tmp_path)
    again = ctrl.load(tiny().eval(), tmp_path)
    assert again.control.config == model.control.config
    assert torch.equal(again(IDS).logits, model(IDS).logits)
    assert not torch.equal(again(IDS).logits, tiny().eval()(IDS).logits)


def test_folders_whose_norms_had_the_layer_s_alpha_compute_as_they_did(tmp_path: Path) -> None:
    """Before each norm had a factor: c was sigmoid(theta)."""
    model = disturbed(norm_mix="learned", alpha_start=0.3)
    for layer in ctrl.layer.expanded_layers(model):
        for norm in (layer.expanded.input_layernorm, layer.expanded.post_attention_layernorm):
            norm.norm_mix = 0.3
    expected = model(IDS).logits
    ctrl.save(model, tmp_path)
    tensors = read_tensors(tmp_path / "model.safetensors")
    save_file(
        {n: t for n, t in tensors.items() if "norm.interpolation_factor" not in n}, tmp_path / "model.safetensors"
    )
    meta = json.loads((tmp_path / "control_config.json").read_text())
    meta["control"]["norm_mix"] = "alpha"
    (tmp_path / "control_config.json").write_text(json.dumps(meta))
    with pytest.warns(UserWarning, match="norm_mix='alpha' is now 'learned'"):
        again = ctrl.load(tiny().eval(), tmp_path)
    torch.testing.assert_close(again(IDS).logits, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(disturbed(alpha_start=0.3)(IDS).logits, expected, rtol=1e-3)
    ctrl.save(again, tmp_path / "now")
    assert torch.equal(ctrl.load(tiny().eval(), tmp_path / "now")(IDS).logits, again(IDS).logits)


def test_what_else_was_unfrozen_is_saved_too(tmp_path: Path) -> None:
    model = disturbed()
    model.model.norm.weight.requires_grad_(True)
    with torch.no_grad():
        model.model.norm.weight.mul_(1.5)
    model.save_pretrained(tmp_path)  # the method every trainer calls writes ctrl's format
    assert torch.equal(ctrl.load(tiny().eval(), tmp_path)(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize("kind", [str, Path])
def test_load_takes_a_base_by_folder(kind: Callable[[Path], Any], tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path / "base")
    model = disturbed()
    ctrl.save(model, tmp_path / "trained")
    again = ctrl.load(kind(tmp_path / "base"), tmp_path / "trained").eval()
    assert torch.equal(again(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize("cls", [tf.LlamaForSequenceClassification, tf.LlamaModel])
def test_a_base_with_another_head_is_refused_with_this_reason(cls: Any, tmp_path: Path) -> None:
    """It was said to be another model of the same shapes, or another revision."""
    tiny().save_pretrained(tmp_path / "base")
    ctrl.save(disturbed(), tmp_path / "trained")
    with pytest.raises(ctrl.CheckpointError, match=f"was a LlamaForCausalLM, this is a {cls.__name__}: they have"):
        ctrl.load(cls.from_pretrained(tmp_path / "base"), tmp_path / "trained")


CONCRETE = [tf.LlamaForCausalLM, tf.Qwen2ForCausalLM, tf.GPT2LMHeadModel, tf.MambaForCausalLM, tf.BloomForCausalLM]
CONCRETE += [tf.FalconForCausalLM, tf.Gemma3ForConditionalGeneration, tf.T5ForConditionalGeneration]


@pytest.mark.parametrize("cls", [AutoModelForCausalLM, tf.AutoModel, tf.AutoConfig, tf.LlamaConfig, *CONCRETE])
def test_from_pretrained_refuses_the_folder_and_says_what_to_do(tmp_path: Path, cls: Any) -> None:
    """Llama's class once built its default of 7B random weights, where the folder had no config.json."""
    ctrl.save(disturbed(), tmp_path)
    with pytest.raises((ValueError, StrictDataclassError), match=r"load it with ctrl\.load\(base_model, folder\)"):
        cls.from_pretrained(tmp_path)


def test_a_tokenizer_in_the_folder_loads(tmp_path: Path) -> None:
    """Trainer writes one there."""
    ctrl.save(disturbed(), tmp_path)
    tokenizer().save_pretrained(tmp_path)
    assert tf.AutoTokenizer.from_pretrained(tmp_path)("w5 w7")["input_ids"] == [5, 7]


def test_wrong_base_and_wrong_tensors_are_named(tmp_path: Path) -> None:
    ctrl.save(disturbed(), tmp_path)
    meta = json.loads((tmp_path / "control_config.json").read_text())
    other = meta | {"base": meta["base"] | {"hidden_size": 4096}}
    (tmp_path / "control_config.json").write_text(json.dumps(other))
    with pytest.raises(ctrl.CheckpointError, match="hidden_size is 4096 there, 32 here"):
        ctrl.load(tiny(), tmp_path)
    wider = meta | {"control": meta["control"] | {"layers": 4}}
    (tmp_path / "control_config.json").write_text(json.dumps(wider))
    with pytest.raises(ctrl.CheckpointError, match="missing tensors"):
        ctrl.load(tiny(), tmp_path)


def test_wrong_shapes_are_named(tmp_path: Path) -> None:
    ctrl.save(disturbed(), tmp_path)
    weights = tmp_path / "model.safetensors"
    tensors = read_tensors(weights)
    name = "model.layers.1.expanded.mlp.up_proj.weight"
    save_file(tensors | {name: torch.ones(3, 32)}, weights)
    with pytest.raises(
        ctrl.CheckpointError, match=r"up_proj\.weight has shape \(3, 32\), the model expects \(64, 32\)"
    ):
        ctrl.load(tiny(), tmp_path)


@pytest.mark.parametrize("fault", ["damaged", "missing", "shape"])
def test_a_refused_checkpoint_leaves_the_base_as_it_was(tmp_path: Path, fault: str) -> None:
    model = disturbed(divergence="mse")
    ctrl.save(model, tmp_path)
    weights = tmp_path / "model.safetensors"
    whole, tensors = weights.read_bytes(), read_tensors(weights)
    first = next(iter(tensors))
    if fault == "damaged":
        weights.write_bytes(whole[: len(whole) // 2])
    else:
        rest = {name: tensor for name, tensor in tensors.items() if name != first}
        save_file(rest if fault == "missing" else {**rest, first: torch.ones(2, 2, 2)}, weights)
    base, fresh = tiny().eval(), tiny().eval()
    base.lm_head.requires_grad_(False)
    with pytest.raises(ctrl.CheckpointError, match=r"cut short|missing tensors|has shape"):
        ctrl.load(base, tmp_path)
    assert type(base) is type(fresh)
    assert base.state_dict().keys() == fresh.state_dict().keys()
    assert vars(base.config) == vars(fresh.config)
    assert [n for n, p in base.named_parameters() if not p.requires_grad] == ["lm_head.weight"]
    assert torch.equal(base(IDS).logits, fresh(IDS).logits)
    weights.write_bytes(whole)
    assert torch.equal(ctrl.load(base, tmp_path)(IDS).logits, model(IDS).logits)


def test_dtypes_come_back(tmp_path: Path) -> None:
    """Copies trained in fp32 over a bf16 base are neither rounded nor widened on the same base."""
    model = disturbed().bfloat16()
    low = ctrl.layer.expanded_layers(model)[0]
    low.expanded.float().mlp.up_proj.weight.data.add_(1e-4)  # less than bf16 holds
    ctrl.save(model, tmp_path)
    again = ctrl.load(tiny().eval().bfloat16(), tmp_path)
    expected, state = model.state_dict(), again.state_dict()
    assert {n: t.dtype for n, t in state.items()} == {n: t.dtype for n, t in expected.items()}
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
    assert {n for n, p in again.named_parameters() if p.requires_grad} == {
        n for n, p in model.named_parameters() if p.requires_grad
    }


@pytest.mark.parametrize("stored", [True, False])  # folders of earlier versions do not say it
def test_rounding_to_another_base_s_dtype_is_said(tmp_path: Path, stored: bool) -> None:
    ctrl.save(disturbed(), tmp_path)
    if not stored:
        meta = json.loads((tmp_path / "control_config.json").read_text())
        del meta["base"]["dtype"]
        (tmp_path / "control_config.json").write_text(json.dumps(meta))
    with pytest.warns(UserWarning, match=r"this one is in torch\.bfloat16: \d+ tensors are rounded"):
        again = ctrl.load(tiny().eval().bfloat16(), tmp_path)
    assert again(IDS).logits.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("representable", [True, False])
def test_a_wider_base_is_said_if_it_is_no_longer_the_one_that_was_saved(
    dtype: torch.dtype, representable: bool, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    """A base of a half type loaded wide has the same weights; one that `.bfloat16()` rounded after expand has not."""
    base = tiny().to(dtype).float() if representable else tiny()  # type: ignore[arg-type]
    model = ctrl.expand(copy.deepcopy(base), ctrl.ControlConfig(layers=2)).to(dtype)  # type: ignore[arg-type]
    ctrl.save(model, tmp_path)
    again = ctrl.load(copy.deepcopy(base), tmp_path)
    assert again(IDS).logits.isfinite().all()
    said = [str(w.message) for w in recwarn if "saved with its base in" in str(w.message)]
    assert bool(said) != representable
    assert all(f"{dtype}, this one is in torch.float32 and holds values that {dtype} rounds" in text for text in said)
    state = ctrl.load(base.to(dtype), tmp_path).state_dict()  # type: ignore[arg-type]
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_plain_models_are_refused(tmp_path: Path) -> None:
    for use in (ctrl.describe, ctrl.merge_back, lambda m: ctrl.save(m, tmp_path)):
        with pytest.raises(ctrl.ConfigError, match=r"is not expanded: call ctrl\.expand"):
            use(tiny())
    with pytest.raises(ctrl.ConfigError, match="expanded already"):
        ctrl.expand(disturbed())


@pytest.mark.parametrize("cls", [tf.LlamaForSequenceClassification, tf.LlamaModel, tf.LlamaForCausalLM])
def test_a_base_by_name_that_is_no_causal_language_model_is_refused_with_the_reason(cls: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    cls(tiny().config).save_pretrained(tmp_path / "base")
    model = ctrl.expand(cls.from_pretrained(tmp_path / "base"), ctrl.ControlConfig(layers=2))
    folder, causal = ctrl.save(model, tmp_path / "saved"), cls is tf.LlamaForCausalLM
    said = (
        rf"in training was a {cls.__name__}, .*: pass the model itself, transformers\.{cls.__name__}\.from_pretrained"
    )
    with contextlib.nullcontext() if causal else pytest.raises(ctrl.CheckpointError, match=said):
        ctrl.load(tmp_path / "base", folder)
    again = ctrl.load(cls.from_pretrained(tmp_path / "base"), folder)
    assert torch.equal(again.eval()(IDS)[0], model.eval()(IDS)[0])


def test_a_base_by_name_runs_no_code_that_it_brings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal transformers would ask, and run it on a y. A published checkpoint can name such a base."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    ctrl.save(disturbed(), tmp_path / "saved")
    tiny().save_pretrained(tmp_path / "base")
    ran = tmp_path / "ran"
    (tmp_path / "base" / "own.py").write_text(
        f"open({str(ran)!r}, 'w')\nfrom transformers import LlamaConfig as C, LlamaForCausalLM as M\n"
    )
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}}
    file = tmp_path / "base" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | own))
    with pytest.raises(ctrl.CheckpointError, match=r"brings Python files, .* trust_remote_code=True"):
        ctrl.load(tmp_path / "base", tmp_path / "saved")
    ctrl.export_published(disturbed(), tmp_path / "published")
    with pytest.raises(ctrl.CheckpointError, match=r"no model can be built from .*config\.json and its base"):
        ctrl.load_published(tmp_path / "published", base=str(tmp_path / "base"))
    assert not ran.exists()


@pytest.mark.parametrize(
    "base", [None, "x", 5, [], {}, {"computes": 1}, {"dtype": "x"}, {"dtype": None}, {"dtype": "torch.load"}]
)
def test_facts_of_the_base_that_are_none_are_refused(tmp_path: Path, base: Any) -> None:
    ctrl.save(disturbed(), tmp_path)
    file = tmp_path / "control_config.json"
    meta = json.loads(file.read_text())
    meta["base"] = {**meta["base"], **base} if isinstance(base, dict) and base else base
    file.write_text(json.dumps(meta))
    with pytest.raises(
        ctrl.CheckpointError, match=r"control_config\.json is not a control config .*: save the model again"
    ):
        ctrl.load(tiny(), tmp_path)


def test_parts_of_copies_that_were_frozen_are_frozen_again(tmp_path: Path) -> None:
    model, all_frozen = disturbed(), disturbed().requires_grad_(False)
    model.model.layers[1].expanded.mlp.requires_grad_(False)
    trains = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    ctrl.save(model, tmp_path / "a")
    again = ctrl.load(tiny().eval(), tmp_path / "a")
    assert [name for name, parameter in again.named_parameters() if parameter.requires_grad] == trains
    ctrl.save(all_frozen, tmp_path / "b")  # of a model in use; whoever loads it may train it
    assert any(parameter.requires_grad for parameter in ctrl.load(tiny().eval(), tmp_path / "b").parameters())


def tied() -> Any:
    base: Any = tiny().eval()
    base.config.tie_word_embeddings = True
    base.tie_weights()
    return base


def with_own_parts(parts: list[str]) -> Any:
    """Expanded over a base whose head is its embeddings, and then with its own of these parts, as PEFT makes them."""
    model = ctrl.expand(tied(), ctrl.ControlConfig(layers=2))
    adapted: Any = get_peft_model(model, LoraConfig(target_modules=["q_proj"], modules_to_save=parts))
    with torch.no_grad():
        for number, (name, parameter) in enumerate(adapted.named_parameters()):
            if ".modules_to_save." in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
    return adapted.merge_and_unload().eval()


def with_assigned_head() -> Any:
    model = ctrl.expand(tied(), ctrl.ControlConfig(layers=2))
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() * 1.5, requires_grad=False)
    return model


@pytest.mark.filterwarnings("ignore:PEFT freezes the copies", "ignore:.*tie_word_embeddings")
@pytest.mark.parametrize("parts", [["lm_head"], ["embed_tokens"], ["lm_head", "embed_tokens"], []])
def test_a_head_that_is_no_longer_the_embeddings_is_kept(parts: list[str], tmp_path: Path) -> None:
    model = with_own_parts(parts) if parts else with_assigned_head()
    expected = model(IDS).logits
    assert not torch.equal(model.lm_head.weight, model.get_input_embeddings().weight)
    ctrl.save(model, tmp_path / "one")
    again = ctrl.load(tied(), tmp_path / "one")
    assert torch.equal(again(IDS).logits, expected)
    ctrl.save(again, tmp_path / "two")
    assert torch.equal(ctrl.load(tied(), tmp_path / "two")(IDS).logits, expected)
    ctrl.export_published(model, tmp_path / "three")
    assert torch.equal(ctrl.load_published(tmp_path / "three")(IDS).logits, expected)
    with ctrl.at_alpha(model, 1.0):
        expected = model(IDS).logits
    plain = ctrl.merge_back(model, alpha=1.0)
    assert not plain.config.tie_word_embeddings  # which servers read
    assert torch.equal(plain(IDS).logits, expected)
    accelerate.cpu_offload(model)
    assert torch.equal(ctrl.merge_back(model, alpha=1.0)(IDS).logits, expected)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
@pytest.mark.filterwarnings("ignore:ControlConfig")
def test_a_fixed_alpha_at_an_end_loads(alpha: float, tmp_path: Path) -> None:
    """Its theta is infinite."""
    model = disturbed(alpha_start=alpha)
    ctrl.save(model, tmp_path)
    assert torch.equal(ctrl.load(tiny().eval(), tmp_path)(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_rank_copies_over_a_base_that_is_rounded_now_are_said(dtype: torch.dtype, tmp_path: Path) -> None:
    """Their own tensors stay in fp32, so that none of the file is rounded."""
    ctrl.save(disturbed(expanded="lora"), tmp_path)
    with pytest.warns(UserWarning, match=f"with its base in torch.float32, this one is in {dtype}, which rounds it"):
        ctrl.load(tiny().to(dtype), tmp_path)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("dtype", "when"),
    [(torch.bfloat16, "before expand"), (torch.bfloat16, "after expand"), (torch.float16, "before expand")],
)
def test_a_base_that_was_rounded_and_is_fp32_again_is_said(dtype: torch.dtype, when: str, tmp_path: Path) -> None:
    """A model loaded in a half type and trained in fp32: by its name it would come back without the rounding."""
    base: Any = tiny().eval()
    model: Any = ctrl.expand(base.to(dtype) if when == "before expand" else base, ctrl.ControlConfig(layers=2))
    model = model.to(dtype).float()
    ctrl.save(model, tmp_path)
    with pytest.warns(UserWarning, match=r" more: values of this base are not those .* to\(dtype\) and back rounds it"):
        other = ctrl.load(tiny().eval(), tmp_path)
    assert not torch.equal(other(IDS).logits, model(IDS).logits)
    same: Any = tiny().eval().to(dtype).float()  # type: ignore[arg-type]
    same.model.rotary_emb.load_state_dict(model.model.rotary_emb.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ctrl.load(same, tmp_path)


def test_a_setting_that_is_gone_from_the_config_is_no_default(tmp_path: Path) -> None:
    ctrl.save(disturbed(interpolation="slerp"), tmp_path)
    path = tmp_path / "control_config.json"
    values = json.loads(path.read_text())
    del values["control"]["interpolation"]
    path.write_text(json.dumps(values))
    with pytest.raises(ctrl.CheckpointError, match=r"of two saves: control.interpolation is None in one, 'slerp' in"):
        ctrl.load(tiny(), tmp_path)
