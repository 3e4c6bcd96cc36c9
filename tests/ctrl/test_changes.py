"""What of a base has changed since it was expanded: it is saved with the copies, and said where the base is used."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments

import ctrl
from ctrl.changes import changed
from ctrl.expansion import take_off
from tests.helpers.named_bases import named, one_row, saved
from tests.helpers.quantised import QUANTISED
from tests.helpers.tiny_llama import IDS


def test_what_training_changed_besides_the_copies_does_not_matter_and_stays(tmp_path: Path) -> None:
    """Saved, loaded and saved again: the second load once had the base's norm, since it was frozen after the first."""
    model = ctrl.expand(named("base"), ctrl.ControlConfig(layers=2))
    model.model.norm.weight.requires_grad_(True)
    with torch.no_grad():
        model.model.norm.weight.mul_(1.5)
    ctrl.save(model, tmp_path / "a")
    again = ctrl.load(named("base"), tmp_path / "a")
    trained = [[n for n, p in m.named_parameters() if p.requires_grad] for m in (model, again)]
    assert trained[0] == trained[1]
    ctrl.save(again, tmp_path / "b")
    assert torch.equal(ctrl.load(named("base"), tmp_path / "b")(IDS).logits, model(IDS).logits)


def test_a_part_that_trained_and_was_frozen_again_is_saved(tmp_path: Path) -> None:
    model = saved(tmp_path / "before", named("base"))
    with torch.no_grad():
        model.lm_head.weight.mul_(1.5)
    ctrl.save(copy.deepcopy(model), tmp_path / "after")
    assert torch.equal(ctrl.load(named("base"), tmp_path / "after")(IDS).logits, model(IDS).logits)
    before, after = (load_file(tmp_path / name / "model.safetensors").keys() for name in ("before", "after"))
    assert after - before == {"lm_head.weight"}


def merged_adapters(model: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT on top of an expanded model has a warning of its own
        adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    return adapted.merge_and_unload()


def started_from_the_base(model: Any) -> Any:
    """PiSSA takes the base's main directions out of it, for as long as the adapters are on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights="pissa"))
    return model


def adapters_on(model: Any) -> Any:
    """No change of frozen weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]))
    return model


def written(model: Any) -> Any:
    model.model.layers[0].mlp.up_proj.weight.data.mul_(1.5)
    return model


def other_weights_loaded(model: Any) -> Any:
    model.load_state_dict(named("other", seed=3).state_dict(), strict=False)
    return model


def unfrozen(model: Any) -> Any:
    """No change of frozen weights: the page says that what you unfroze stays as trained."""
    model.lm_head.weight.requires_grad_(True).data.mul_(1.5)
    return model


def enter(model: Any) -> None:
    with ctrl.pretrained(model):
        pass


@pytest.mark.parametrize("use", [enter, ctrl.reference, ctrl.unload])
@pytest.mark.parametrize("change", [merged_adapters, written, other_weights_loaded, unfrozen, lambda model: model])
def test_a_base_that_is_no_longer_that_of_expand_is_said(use: Any, change: Any) -> None:
    model = change(ctrl.expand(named("base"), ctrl.ControlConfig(layers=2)).eval())
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        use(model)
    said = [str(w.message) for w in seen if "is not the base that was expanded" in str(w.message)]
    assert len(said) == (change in (merged_adapters, written, other_weights_loaded))


@pytest.mark.parametrize("change", [started_from_the_base, adapters_on])
def test_a_base_under_adapters_is_compared_too(change: Any) -> None:
    """Its weights have other names then."""
    model = change(ctrl.expand(named("base"), ctrl.ControlConfig(layers=2)).eval())
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        enter(model)
    said = [str(w.message) for w in seen if "is not the base that was expanded" in str(w.message)]
    assert len(said) == (change is started_from_the_base)


def test_in_training_the_base_is_compared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked = ctrl.expand(named("base"), ctrl.ControlConfig(layers=2)).train(), []
    monkeypatch.setattr("ctrl.switches.warn_if_changed", lambda *given, **more: asked.append(given))
    for _ in range(3):
        enter(model)
    assert len(asked) == 1
    enter(model.eval())
    assert len(asked) == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_another_dtype_is_no_change(dtype: torch.dtype, tmp_path: Path) -> None:
    model = saved(tmp_path / "before", named("base"))
    ctrl.save(model.to(dtype), tmp_path / "after")
    before, after = (load_file(tmp_path / name / "model.safetensors").keys() for name in ("before", "after"))
    assert after == before


def trained(dtype: torch.dtype, part: str, change: Any) -> Any:
    """An expansion with a part that trained and was frozen again."""
    model = ctrl.expand(named("base").to(dtype), ctrl.ControlConfig(layers=2))  # type: ignore[arg-type]
    with torch.no_grad():
        change(model.get_parameter(part))
    return model


@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize(
    ("dtype", "part", "change"),
    [
        (torch.float32, "model.norm.weight", lambda weight: weight.add_(1e-3)),  # bf16 has no number between
        (torch.float32, "lm_head.weight", lambda weight: weight.mul_(1 + 1e-5)),
        (torch.float16, "lm_head.weight", lambda weight: weight.mul_(1.1)),
        (torch.float32, "model.embed_tokens.weight", one_row),
        (torch.bfloat16, "model.embed_tokens.weight", one_row),
    ],
)
def test_a_small_change_of_a_part_is_saved_and_said(
    dtype: torch.dtype, part: str, change: Any, copied: bool, tmp_path: Path
) -> None:
    model = trained(dtype, part, change)
    model = copy.deepcopy(model) if copied else model
    ctrl.save(model, tmp_path)
    again = ctrl.load(named("base").to(dtype), tmp_path)  # type: ignore[arg-type]
    assert torch.equal(again.get_parameter(part), model.get_parameter(part))
    with pytest.warns(UserWarning, match=f"1 frozen parameters have changed since .first: {part}"):
        enter(model)


@pytest.mark.parametrize("offload", [accelerate.cpu_offload, None])
@pytest.mark.parametrize("kind", ["floats", "fake int8", "fake packed"])
@pytest.mark.parametrize("part", ["model.norm.weight", "model.layers.0.input_layernorm.weight", "lm_head.weight"])
def test_floats_of_quantised_and_offloaded_bases_that_changed_are_saved(
    part: str, kind: str, offload: Any, tmp_path: Path
) -> None:
    """A part that trained and was frozen again, or adapters that were merged into it."""
    base: Any = (lambda: named("base")) if kind == "floats" else QUANTISED[kind]
    model: Any = ctrl.expand(base(), ctrl.ControlConfig(layers=2)).eval()
    with torch.no_grad():
        model.get_parameter(part).mul_(1.5)
    expected = model(IDS).logits
    if offload is not None:
        offload(model, execution_device="cpu")
    ctrl.save(model, tmp_path)
    assert torch.equal(ctrl.load(base(), tmp_path).eval()(IDS).logits, expected)
    with pytest.warns(UserWarning, match=f"1 frozen parameters have changed since .first: {part}"):
        enter(model)


def merged_in(model: Any, kind: str) -> Any:
    """Write into a quantised matrix, as a merge of adapters into it does."""
    packed = model.get_submodule("model.layers.0.self_attn.q_proj")
    columns = (packed.qweight if kind == "fake packed" else packed.weight.data)[:, :8]
    columns.copy_((columns.float() / 2).to(columns.dtype))
    return model


@pytest.mark.parametrize("kind", ["fake int8", "fake packed", "fake float8"])
def test_quantised_weights_that_changed_are_said_wherever_they_are_used(kind: str, tmp_path: Path) -> None:
    def model() -> Any:
        return ctrl.expand(QUANTISED[kind](), ctrl.ControlConfig(layers=2)).eval()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = ctrl.save(model(), tmp_path / "before")
        enter(own := model())
        assert ctrl.swap(own, before, allow_other_base=False) is not None
        ctrl.load(QUANTISED[kind](), before)
    weight = r"model\.layers\.0\.self_attn\.q_proj\.q?weight"
    with pytest.warns(UserWarning, match=rf"1 quantised weights .* changed since it was expanded \(first: {weight}"):
        after = ctrl.save(merged_in(model(), kind), tmp_path / "after")
    for use in (enter, ctrl.unload):
        with pytest.warns(UserWarning, match=rf"1 frozen parameters have changed since .first: {weight}"):
            use(merged_in(model(), kind))
    with pytest.raises(ctrl.ConfigError, match=rf"1 weights of the base have changed .* \(first: {weight}"):
        ctrl.swap(merged_in(model(), kind), before)
    for folder in (before, after):  # another revision: the folder is of the base as it was
        with pytest.warns(
            UserWarning, match="the quantised weights of this base are not those of the base in training"
        ):
            ctrl.load(merged_in(QUANTISED[kind](), kind), folder)
    other = ctrl.expand(merged_in(QUANTISED[kind](), kind), ctrl.ControlConfig(layers=2))
    with pytest.warns(UserWarning, match="the quantised weights of this base are not those of the base in training"):
        other.load_state_dict(load_file(before / "model.safetensors"), strict=False)
    expansion = take_off(model())
    with pytest.warns(UserWarning, match="the quantised weights of this base are not those of the base in training"):
        ctrl.swap(merged_in(QUANTISED[kind](), kind), expansion)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_a_type_and_back_is_no_change(half: torch.dtype, tmp_path: Path) -> None:
    model = ctrl.expand(named("base"), ctrl.ControlConfig(layers=2)).to(half).float()  # type: ignore[arg-type]
    assert not changed(model)


def test_what_was_frozen_when_it_was_saved_is_frozen_again(tmp_path: Path) -> None:
    """And the next save has it again. A part that still trains does so after loading."""
    model = trained(torch.float32, "lm_head.weight", lambda weight: weight.mul_(1.5))
    model.model.norm.weight.requires_grad_(True)
    ctrl.save(model, tmp_path / "a")
    again = ctrl.load(named("base"), tmp_path / "a")
    assert all(p.requires_grad == model.get_parameter(n).requires_grad for n, p in again.named_parameters())
    ctrl.save(again, tmp_path / "b")
    assert torch.equal(ctrl.load(named("base"), tmp_path / "b")(IDS).logits, model(IDS).logits)
    trainer = Trainer(model, TrainingArguments(str(tmp_path / "run"), report_to=[], use_cpu=True))
    trainer.save_model(str(tmp_path / "c"))
    model.load_state_dict(load_file(tmp_path / "c" / "model.safetensors"), strict=False)  # its own mark
