"""Merged models are plain in memory, not only on disk, whatever a trainer has put on the expanded model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from transformers import AutoModelForCausalLM

import ctrl
from tests.helpers.tiny_llama import BATCHES, IDS, expanded, tiny
from tests.helpers.trainers import (
    accelerated,
    dpo_trainer,
    fuse_head,
    fused_loss,
    grpo_trainer,
    hf_trainer,
    own_loop,
    own_loss,
    sft_trainer,
)


def fused(model: Any, folder: Path) -> None:
    fuse_head(model)
    own_loop(model, fused_loss)


def prepared(model: Any, folder: Path) -> None:
    own_loop(model, own_loss, accelerated(mixed_precision="bf16"))


TRAININGS: dict[str, Callable[[Any, Path], Any]] = {
    "Trainer, fp32": lambda model, folder: hf_trainer(model, folder).train(),
    "Trainer, bf16": lambda model, folder: hf_trainer(model, folder, bf16=True).train(),
    "accelerate, bf16": prepared,
    "fused head": fused,
    "SFTTrainer": lambda model, folder: sft_trainer(model, folder).train(),
    "SFTTrainer, bf16": lambda model, folder: sft_trainer(model, folder, bf16=True).train(),
    "SFTTrainer, attached": lambda model, folder: ctrl.attach(sft_trainer(model, folder)).train(),
    "DPOTrainer": lambda model, folder: dpo_trainer(model, folder, tiny()).train(),
    "GRPOTrainer": lambda model, folder: grpo_trainer(model, folder).train(),
}


@pytest.mark.slow
@pytest.mark.parametrize("structure", ["concat", "hybrid"])
@pytest.mark.parametrize("training", TRAININGS)
def test_the_merged_object_is_the_saved_one(training: str, structure: str, tmp_path: Path) -> None:
    """forward, generate and gap of the object in memory are those of what it saves, and not the expanded model's."""
    model: Any = expanded(structure=structure)
    TRAININGS[training](model, tmp_path / "out")
    model.eval()
    plain, gap = ctrl.merge_back(model, gap_on=BATCHES)
    plain.save_pretrained(tmp_path / "plain")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "plain").eval()
    assert type(plain) is type(loaded)
    assert not [name for name, module in plain.named_modules() if "forward" in vars(module)]
    assert torch.equal(plain(IDS).logits, loaded(IDS).logits)
    assert not torch.equal(plain(IDS).logits, model(IDS).logits)
    generated = [m.generate(IDS, max_new_tokens=6, do_sample=False) for m in (plain, loaded)]
    assert torch.equal(*generated)
    assert gap == ctrl.merge_gap(model, loaded, BATCHES)
    assert gap.kl > 1e-5


@pytest.mark.parametrize("training", ["Trainer, bf16", "fused head"])
def test_merged_in_place_and_many_are_plain_too(training: str, tmp_path: Path) -> None:
    model, other = expanded(), expanded()
    TRAININGS[training](model, tmp_path / "out")
    expected = ctrl.merge_back(model)(IDS).logits
    mean = ctrl.merge_models([model, other])
    mean.save_pretrained(tmp_path / "mean")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "mean")
    assert torch.equal(loaded.train()(IDS).logits, mean(IDS).logits)
    merged = ctrl.merge_back(model, in_place=True)
    assert merged is model
    assert torch.equal(merged(IDS).logits, expected)
    assert torch.equal(ctrl.expand(merged, ctrl.ControlConfig(layers=2))(IDS).logits, expected)


@pytest.mark.parametrize("structure", ["concat", "stack"])
def test_device_hooks_stay(structure: str) -> None:
    """A merged model whose parts are on several devices needs the hooks that move its tensors."""
    model = expanded(structure=structure)
    expected = model(IDS).logits
    for module in (model, *model.model.layers, *(layer.expanded for layer in ctrl.layer.expanded_layers(model))):
        add_hook_to_module(module, AlignDevicesHook("cpu", io_same_device=True))
    assert torch.equal(model(IDS).logits, expected)
    plain = ctrl.merge_back(model)
    assert torch.equal(plain(IDS).logits, ctrl.merge_back(expanded(structure=structure))(IDS).logits)
    seen: list[object] = []
    for module in (plain, *plain.model.layers):
        module._hf_hook.pre_forward = lambda module, *args, **kwargs: (seen.append(module), (args, kwargs))[1]
    plain(IDS)
    assert seen == [plain, *plain.model.layers]
