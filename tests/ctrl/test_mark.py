"""Weights know their expansion: no trainer resumes a model from the checkpoint of another one."""

from __future__ import annotations

import functools
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, Trainer, TrainingArguments

import ctrl
from ctrl.mark import MARK
from tests.helpers.families import build
from tests.helpers.tiny_llama import IDS, disturbed, expanded, sequences, tiny


def changed(seed: int = 0, eps: float = 1e-6, dtype: torch.dtype = torch.float32, **config: Any) -> PreTrainedModel:
    base = build("llama", seed).to(dtype)
    base.config.rms_norm_eps = eps
    return ctrl.expand(base, ctrl.ControlConfig(**{"layers": 2, **config}))


OTHERS: dict[str, tuple[Any, str]] = {
    "base": (functools.partial(changed, seed=1), "the weights of its base, '.*', are others"),
    "config of the base": (functools.partial(changed, eps=1e-3), "rms_norm_eps is 1e-06 there, 0.001 here"),
    "layers": (functools.partial(changed, layers=[0, 2]), r"expanded_layers is \[1, 3\] there, \[0, 2\] here"),
    "more layers": (functools.partial(changed, layers=3), r"expanded_layers is \[1, 3\] there, \[0, 1, 3\] here"),
    "interpolation": (functools.partial(changed, interpolation="slerp"), "interpolation is lerp there, slerp here"),
    "structure": (functools.partial(changed, structure="stack"), "structure is concat there, stack here"),
    "low rank": (functools.partial(changed, expanded="lora"), "expanded is full there, lora here"),
    "norms": (functools.partial(changed, norm_mix=0.5), "norm_mix is 0.0 there, 0.5 here"),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as Trainer writes it into a checkpoint."""
    folder = tmp_path_factory.mktemp("checkpoint")
    changed().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("case", OTHERS)
def test_weights_of_another_expansion_are_refused(saved: Path, case: str) -> None:
    """As Trainer loads them: the tensors alone, not strict."""
    make, match = OTHERS[case]
    with pytest.raises(ctrl.CheckpointError, match=f"of another expansion: .*{match}.*resume_from_checkpoint"):
        make().load_state_dict(load_file(saved / "model.safetensors"), False)


@pytest.mark.parametrize("torch_file", [False, True])
@pytest.mark.parametrize(("case", "strict"), [(n, n in ("interpolation", "norms")) for n in list(OTHERS)[2:]])
def test_state_dicts_of_another_expansion_are_refused(
    case: str, strict: bool, torch_file: bool, tmp_path: Path
) -> None:
    """Equal names and shapes: only their metadata says it. A plain dict of the tensors has none."""
    (make, match), state = OTHERS[case], torch.nn.Sequential(changed()).state_dict()
    if torch_file:
        torch.save(state, tmp_path / "state.pt")
        state = torch.load(tmp_path / "state.pt")
    with pytest.raises(ctrl.CheckpointError, match=f"state dict is of another expansion: {match}.*same ControlConfig"):
        torch.nn.Sequential(make()).load_state_dict(state, strict)
    torch.nn.Sequential(make()).load_state_dict(dict(state), strict)
    torch.nn.Sequential(changed(divergence="cosine", alpha="learned")).load_state_dict(state)


@pytest.mark.parametrize("config", [{}, {"divergence_weight": 3.0}, {"divergence": "cosine", "alpha": "learned"}])
def test_those_of_the_same_are_loaded_with_other_settings_of_the_training_too(
    saved: Path, config: dict[str, Any]
) -> None:
    model, weights = changed(**config), load_file(saved / "model.safetensors")
    found = model.load_state_dict({n: t + 1 if t.is_floating_point() else t for n, t in weights.items()}, False)
    assert not found.unexpected_keys
    assert torch.equal(model.model.layers[1].expanded.mlp.up_proj.weight, model.model.layers[1].mlp.up_proj.weight + 1)


def test_a_base_of_another_type_is_said(saved: Path) -> None:
    weights = load_file(saved / "model.safetensors")
    with pytest.warns(UserWarning, match=r"trained on a base in torch.float32, this one is in torch.bfloat16"):
        changed(dtype=torch.bfloat16).load_state_dict(weights, False)


@pytest.mark.parametrize(
    "damage", [lambda mark: mark[:-40], torch.zeros_like, lambda mark: mark[:0], torch.Tensor.float]
)
def test_a_damaged_mark_is_named(saved: Path, damage: Any, tmp_path: Path) -> None:
    weights = load_file(saved / "model.safetensors")
    weights[MARK] = damage(weights[MARK])
    shutil.copytree(saved, tmp_path / "copied")
    save_file(weights, tmp_path / "copied" / "model.safetensors")
    with pytest.raises(
        ctrl.CheckpointError, match=r"tensor 'control.description', .* is damaged .*copy the file again"
    ):
        changed().load_state_dict(weights, False)
    with pytest.raises(
        ctrl.CheckpointError, match=r"tensor 'control.description', .* is damaged .*copy the file again"
    ):
        ctrl.load(build("llama", 0), tmp_path / "copied")


def test_files_from_before_have_no_mark(saved: Path, tmp_path: Path) -> None:
    weights = load_file(saved / "model.safetensors")
    del weights[MARK]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert not changed().load_state_dict(load_file(tmp_path / "model.safetensors"), False).unexpected_keys


@pytest.mark.slow
def test_trainer_resumes_its_own_and_refuses_others(tmp_path: Path) -> None:
    def trainer(model: PreTrainedModel, steps: int, **more: Any) -> Trainer:
        args = TrainingArguments(
            str(tmp_path), max_steps=steps, save_steps=1, report_to=[], use_cpu=True, disable_tqdm=True, **more
        )
        return Trainer(model, args, train_dataset=sequences(), eval_dataset=sequences())

    trainer(expanded(), 2, eval_strategy="steps", eval_steps=1, load_best_model_at_end=True).train()
    trainer(expanded(), 3).train(resume_from_checkpoint=True)
    with pytest.raises(ctrl.CheckpointError, match=r"expanded_layers is .* there, \[0\] here"):
        trainer(expanded(layers=[0]), 4).train(resume_from_checkpoint=True)


@pytest.mark.parametrize("back", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_frequencies_of_positions_that_were_rounded_are_said(dtype: torch.dtype, back: bool, tmp_path: Path) -> None:
    """`to(dtype)` rounds buffers that no file holds, so a base that is loaded by name computes something else.

    back: and to fp32 again, which leaves weights as they were that had come from a half type.
    """

    def made() -> Any:
        model: Any = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "base").to(dtype)
        return model.float() if back else model

    tiny().to(dtype).float().save_pretrained(tmp_path / "base")  # type: ignore[arg-type]
    model = made().eval()
    ctrl.save(ctrl.expand(model, ctrl.ControlConfig(layers=2)), tmp_path / "saved")
    types = "torch.float32 rounded to a half type" if back else "torch.*16"
    said = f"had RoPE's frequencies, or other buffers, in {types}, this one in torch.float32,"
    with pytest.warns(UserWarning, match=said):
        other = ctrl.load(tmp_path / "base", tmp_path / "saved").eval()
    assert not torch.equal(other(IDS).logits, model(IDS).logits)
    with pytest.warns(UserWarning, match=said):
        other.load_state_dict(load_file(tmp_path / "saved" / "model.safetensors"), strict=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same = ctrl.load(made(), tmp_path / "saved").eval()
    assert torch.equal(same(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize("part", ["decoder", "layer"])
def test_a_part_that_was_compiled_is_saved_as_the_plain_one(part: str, tmp_path: Path) -> None:
    """torch.compile puts a module around it, which has another name for each tensor."""
    model: Any = disturbed()
    names = list(model.state_dict())
    want = model(IDS).logits
    if part == "decoder":
        model.model = torch.compile(model.model, backend="eager")
    else:
        model.model.layers[3] = torch.compile(model.model.layers[3], backend="eager")
    ctrl.save(model, tmp_path)
    assert list(model.state_dict()) != names  # still compiled
    assert torch.equal(ctrl.load(tiny().eval(), tmp_path)(IDS).logits, want)
    model.save_pretrained(tmp_path / "again", state_dict=model.state_dict())
    assert torch.equal(ctrl.load(tiny().eval(), tmp_path / "again")(IDS).logits, want)
    state = load_file(tmp_path / "model.safetensors")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".expanded." in name:
                parameter.zero_()
    lacking, unknown = model.load_state_dict(state, strict=False)  # as Trainer resumes
    assert not unknown
    assert not [name for name in lacking if ".expanded." in name]
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, want)
        model.lm_head.weight[3] += 1
        model.get_input_embeddings().weight[3] += 1
    with pytest.warns(UserWarning, match="2 frozen parameters have changed"), ctrl.pretrained(model):
        pass
