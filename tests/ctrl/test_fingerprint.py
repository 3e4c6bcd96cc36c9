"""An expansion knows the base on which it was trained: other weights of the same shapes are refused, names are not."""

from __future__ import annotations

import copy
import itertools
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel

import ctrl
from ctrl.expansion import take_off
from ctrl.fingerprint import fingerprint
from tests.helpers.families import build, in_turn
from tests.helpers.named_bases import named, one_row, saved
from tests.helpers.quantised import FakeInt8, replace_linears
from tests.helpers.tiny_llama import IDS, disturbed, tiny


def without_fingerprint(folder: Path) -> None:
    """Make the folder one that an earlier version wrote."""
    path = folder / "control_config.json"
    meta = json.loads(path.read_text())
    del meta["base"]["fingerprint"], meta["base"]["part_prints"]
    path.write_text(json.dumps(meta))


def test_another_base_of_the_same_shapes_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    model = saved(tmp_path, named("meta/A"))
    other, fresh = named("meta/B", seed=1), named("meta/B", seed=1)
    with pytest.raises(ctrl.CheckpointError, match=r"trained on 'meta/A', .* this base, 'meta/B', are others"):
        ctrl.load(other, tmp_path)
    assert type(other) is type(fresh)
    assert torch.equal(other(IDS).logits, fresh(IDS).logits)
    assert all(p.requires_grad for p in other.parameters())
    allowed = ctrl.load(other, tmp_path, allow_other_base=True)
    assert torch.equal(
        allowed.model.layers[1].expanded.mlp.up_proj.weight, model.model.layers[1].expanded.mlp.up_proj.weight
    )


@pytest.mark.parametrize("part", ["embed_tokens", "layers.0.input_layernorm", "layers.2.mlp.up_proj", "norm"])
def test_one_other_tensor_is_enough(part: str, tmp_path: Path) -> None:
    """A fine-tuned sibling, a merged adapter or another revision."""
    saved(tmp_path, named("base"))
    other = named("base")
    with torch.no_grad():
        other.model.get_submodule(part).weight.mul_(1.01)
    with pytest.raises(ctrl.CheckpointError, match="or another revision"):
        ctrl.load(other, tmp_path)


def quantised(seed: int = 0) -> Any:
    """A base whose linear modules have no weights in floats; the norms and the embeddings have."""
    model = named("hub/name", seed=seed)
    replace_linears(model.model.layers, FakeInt8)
    return model


@pytest.mark.parametrize("load", ["load", "swap", "trainer"])
def test_quantised_bases_are_known_by_their_norms_and_embeddings(load: str, tmp_path: Path) -> None:
    """By name too where these are the same: all that is left to compare."""
    own = saved(tmp_path, quantised())
    assert own.control.fingerprint is None

    def put(base: Any) -> Any:
        if load == "load":
            return ctrl.load(base, tmp_path)
        if load == "swap":
            ctrl.swap(base, tmp_path)
            return base
        ctrl.expand(base, ctrl.ControlConfig(layers=2)).load_state_dict(
            load_file(tmp_path / "model.safetensors"), False
        )
        return base

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(put(quantised())(IDS).logits, own(IDS).logits)
    with pytest.warns(UserWarning, match=r"was quantised \(FakeInt8 \(Parameter\)\), this one is in floats"):
        put(named("hub/name"))  # the same base in floats
    for part in ("embed_tokens", "norm", "layers.2.input_layernorm"):
        other = quantised()
        with torch.no_grad():
            other.model.get_submodule(part).weight.mul_(1.1)
        with pytest.raises(ctrl.CheckpointError, match=r"weights of (this|its) base"):
            put(other)
    with pytest.raises(ctrl.CheckpointError, match=r"weights of (this|its) base"):
        put(named("hub/name", seed=3))


@pytest.mark.parametrize(("family", "structure"), in_turn(0))
def test_the_same_base_under_another_name_or_dtype_is_welcome(family: str, structure: Any, tmp_path: Path) -> None:
    """A local copy of a base from the Hub; a base that was saved in bf16 and is loaded in fp32."""
    base = build(family).bfloat16().float()  # the values of a bf16 checkpoint
    base.config._name_or_path = "hub/name"
    expected = fingerprint(base)
    saved(tmp_path, base, structure=structure)
    for dtype in (torch.float32, torch.bfloat16):
        again = build(family).bfloat16().to(dtype)  # type: ignore[arg-type]
        again.config._name_or_path = "local/folder"
        assert fingerprint(again) == expected
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*was trained on 'hub/name'")
            ctrl.load(again, tmp_path)
        assert again.control.fingerprint == expected  # expanded again it knows the base as before


def test_folders_without_a_fingerprint_load_and_another_name_is_said(tmp_path: Path) -> None:
    model = saved(tmp_path, named("meta/A"))
    without_fingerprint(tmp_path)
    for name, said in (("meta/A", False), ("", False), ("meta/B", True)):
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            again = ctrl.load(named(name), tmp_path)
        assert torch.equal(again(IDS).logits, model(IDS).logits)
        found = [str(w.message) for w in seen if "trained on 'meta/A', this base is 'meta/B'" in str(w.message)]
        assert len(found) == said


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float16), (torch.float16, torch.bfloat16)])
def test_dtypes_that_round_in_two_ways_are_not_compared(
    dtypes: tuple[torch.dtype, torch.dtype], tmp_path: Path
) -> None:
    saved(tmp_path, named("meta/A", dtype=dtypes[0]))
    with pytest.warns(UserWarning, match="whether their weights are the same cannot be seen"):
        ctrl.load(named("meta/B", dtype=dtypes[1]), tmp_path)


def test_weights_that_are_not_here_are_not_compared(tmp_path: Path) -> None:
    with torch.device("meta"):
        empty = tiny()
    assert fingerprint(empty) is None
    assert ctrl.expand(empty, ctrl.ControlConfig(layers=2)).control.fingerprint is None


def test_a_published_checkpoint_is_known_by_its_own_weights(tmp_path: Path) -> None:
    """Its model is built with random weights, and expanded before they are loaded."""
    model = saved(tmp_path / "ours", named("base"))
    ctrl.export_published(model, tmp_path / "published")
    again = ctrl.load_published(tmp_path / "published", base=named("base", seed=3)).eval()
    ctrl.save(again, tmp_path / "again")
    assert torch.equal(ctrl.load(named("base"), tmp_path / "again")(IDS).logits, model(IDS).logits)


def test_a_base_by_name_is_loaded_as_it_was_in_training(tmp_path: Path) -> None:
    """fp32 training on a bf16 file: loaded in the file's dtype it would be another model."""
    named("", dtype=torch.bfloat16).save_pretrained(tmp_path / "base")
    wide = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    model = saved(tmp_path / "trained", wide)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = ctrl.load(str(tmp_path / "base"), tmp_path / "trained").eval()
    assert again.dtype == torch.float32
    assert torch.equal(again(IDS).logits, model(IDS).logits)
    narrow = ctrl.load(str(tmp_path / "base"), tmp_path / "trained", dtype=torch.bfloat16, attn_implementation="eager")
    assert narrow.dtype == torch.bfloat16
    assert narrow.config._attn_implementation == "eager"
    with pytest.raises(ctrl.ConfigError, match="load got a model and dtype: give these when you load the model itself"):
        ctrl.load(wide, tmp_path / "trained", dtype=torch.bfloat16)


def test_the_attention_divergence_gets_a_base_that_returns_weights(tmp_path: Path) -> None:
    named("").save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", attn_implementation="eager")
    model = saved(tmp_path / "trained", base, divergence="attention")
    again = ctrl.load(str(tmp_path / "base"), tmp_path / "trained").eval()
    assert torch.equal(again(IDS).logits, model(IDS).logits)


def test_a_checkpoint_of_trainer_still_resumes_beside_its_config(tmp_path: Path) -> None:
    """Trainer reads config.json there, for the version of transformers."""
    from tests.helpers.trainers import hf_trainer

    def run(**settings: Any) -> Any:
        return hf_trainer(disturbed(), tmp_path / "run", max_steps=4, per_device_train_batch_size=2, **settings)

    run(save_strategy="steps", save_steps=2).train()
    assert (tmp_path / "run" / "checkpoint-2" / "config.json").is_file()
    second = run()
    second.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert second.state.global_step == 4


def test_another_row_of_the_embeddings_is_said(tmp_path: Path) -> None:
    model, other = (ctrl.expand(named("base"), ctrl.ControlConfig(layers=2)) for _ in range(2))
    ctrl.save(model, tmp_path)
    base = named("base")
    with torch.no_grad():
        one_row(base.get_input_embeddings().weight)
    assert fingerprint(base) == model.control.fingerprint  # no sampled value is another one
    with pytest.raises(ctrl.ConfigError, match="made on another base model, or on other weights"):
        ctrl.swap(base, take_off(other))
    said = r"embed_tokens\.weight: values of this base are not those of the base in training, .* at random"
    resumed = ctrl.expand(copy.deepcopy(base), ctrl.ControlConfig(layers=2))
    with pytest.warns(UserWarning, match=said):
        resumed.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=False)
    with pytest.warns(UserWarning, match=said):
        ctrl.load(base, tmp_path)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*values of this base")
        ctrl.load(named("base").bfloat16(), tmp_path)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("rows", [257, 320])  # the second: samples are among them
@pytest.mark.parametrize("tied", [False, True])
def test_new_rows_of_embeddings_that_are_saved_may_start_elsewhere(tied: bool, rows: int, tmp_path: Path) -> None:
    """Whoever adds tokens resizes the base in each process, and transformers draws the new rows at random."""

    seeds = itertools.count()

    def base() -> PreTrainedModel:
        plain: Any = tiny().eval()
        plain.config.tie_word_embeddings = tied
        plain.tie_weights()
        for number, seed in ((256, 0), (rows, next(seeds))):
            torch.manual_seed(seed)
            plain.resize_token_embeddings(number, mean_resizing=False)
        return plain

    def trainable(plain: PreTrainedModel) -> Any:
        model: Any = ctrl.expand(plain, ctrl.ControlConfig(layers=2))
        for part in (model.get_input_embeddings(), model.get_output_embeddings()):
            part.requires_grad_(True)
        return model

    model, resumed = trainable(base()), trainable(base())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    ctrl.save(model, tmp_path)
    assert not torch.equal(base().get_input_embeddings().weight, base().get_input_embeddings().weight)
    assert torch.equal(ctrl.load(base(), tmp_path)(IDS).logits, model(IDS).logits)
    resumed.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=False)
    assert torch.equal(resumed(IDS).logits, model(IDS).logits)
    other = base()
    with torch.no_grad():
        other.get_parameter("model.layers.0.mlp.up_proj.weight").mul_(2)
    with pytest.raises(ctrl.CheckpointError, match=r"the weights of this base, .*, are others"):
        ctrl.load(other, tmp_path)


def test_rows_that_were_added_after_expand_load_onto_a_base_that_has_them(tmp_path: Path) -> None:
    model: Any = ctrl.expand(tiny().eval(), ctrl.ControlConfig(layers=2))
    with pytest.warns(UserWarning, match="embeddings now have 120 rows"):
        model.resize_token_embeddings(120)
    ctrl.save(model, tmp_path)
    base = tiny().eval()
    base.resize_token_embeddings(120)
    assert torch.equal(ctrl.load(base, tmp_path)(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize("trained", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("here", [torch.float32, torch.bfloat16, torch.float16])
def test_another_base_of_the_same_name_is_refused_in_every_dtype(
    trained: torch.dtype, here: torch.dtype, tmp_path: Path
) -> None:
    """fp16 and bf16 round to other values, so hashes of values did not compare: all weights of these shapes passed."""

    def loaded(dtype: torch.dtype) -> Any:
        return AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=dtype)

    tiny().save_pretrained(tmp_path / "base")
    ctrl.save(ctrl.expand(loaded(trained), ctrl.ControlConfig(layers=2)), tmp_path / "trained")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what rounds
        ctrl.load(loaded(here), tmp_path / "trained")
        tiny(seed=77).save_pretrained(tmp_path / "base")
        with pytest.raises(ctrl.CheckpointError, match=r"the weights of this base, .* are others"):
            ctrl.load(loaded(here), tmp_path / "trained")
