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
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel, Trainer, TrainingArguments

import ctrl
from ctrl.expansion import take_off
from ctrl.fingerprint import changed, fingerprint
from tests.helpers.families import EVERY, build
from tests.helpers.quantised import FakeInt8, replace_linears
from tests.helpers.tiny_llama import IDS, disturbed, tiny


def named(name: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    base: Any = tiny(seed).eval().to(dtype)  # type: ignore[arg-type]
    base.config._name_or_path = name
    return base


def saved(folder: Path, base: PreTrainedModel, **values: Any) -> Any:
    model = ctrl.expand(base, ctrl.ControlConfig(**{"layers": 2, **values}))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    ctrl.save(model, folder)
    return model


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


@pytest.mark.parametrize("family", EVERY)
@pytest.mark.parametrize("structure", ["concat", "stack", "hybrid"])
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


def trained(dtype: torch.dtype, part: str, change: Any) -> Any:
    """An expansion with a part that trained and was frozen again."""
    model = ctrl.expand(named("base").to(dtype), ctrl.ControlConfig(layers=2))  # type: ignore[arg-type]
    with torch.no_grad():
        change(model.get_parameter(part))
    return model


def one_row(weight: torch.Tensor) -> None:
    weight[7, 1] += 0.5  # no sampled value


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
