"""Adapters of PEFT that are active on an expanded model: they are part of what ctrl.pretrained gives, and said."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, TaskType, get_peft_model

import ctrl
from tests.helpers.tiny_llama import IDS, disturbed

PROMPTS = PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=4)


def test_the_base_of_a_model_with_an_adapter_on_top() -> None:
    """An active adapter is part of what `ctrl.pretrained` gives, and said; low-rank copies are off and not said."""
    model = disturbed()
    with torch.no_grad(), ctrl.pretrained(model):
        base = model(IDS).logits
    adapted: Any = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    said = r"the PEFT adapter of .*q_proj stays on.* open model\.disable_adapter\(\)"
    with pytest.warns(UserWarning, match=said), torch.no_grad(), ctrl.pretrained(adapted):
        assert not torch.allclose(adapted(IDS).logits, base)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with torch.no_grad(), adapted.disable_adapter(), ctrl.pretrained(adapted):
            assert torch.equal(adapted(IDS).logits, base)
        with ctrl.pretrained(disturbed(expanded="lora")):
            pass


def test_prompts_in_front_are_said_to_stay_on() -> None:
    adapted: Any = get_peft_model(disturbed(), PROMPTS)
    with (
        pytest.warns(UserWarning, match=r"the PEFT adapter of PeftModelForCausalLM stays on"),
        ctrl.pretrained(adapted),
    ):
        pass
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with adapted.disable_adapter(), ctrl.pretrained(adapted):
            pass


@pytest.mark.parametrize("end", ["merge_and_unload", "unload"])
@pytest.mark.parametrize("copied", [False, True])
def test_what_trained_before_an_adapter_and_nothing_else_trains_after_it(end: str, copied: bool) -> None:
    """Parts of copies that the user had frozen trained again, and parts of the base that trained did not."""
    model: Any = disturbed(interpolation="dlerpin")
    for one in (1, 2):
        for name, parameter in model.named_parameters():
            if "expanded.mlp" in name or name.startswith("lm_head"):
                parameter.requires_grad_(name.startswith("lm_head") or one == 2)
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        adapted = get_peft_model(model, LoraConfig(r=one, target_modules=["q_proj"]))
        assert not trained & {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        if copied:
            adapted.base_model.model = copy.deepcopy(model)
        model = getattr(adapted, end)()
        assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == trained


def test_copies_train_again_after_an_adapter_if_all_was_frozen_for_it() -> None:
    """PEFT's `prepare_model_for_kbit_training` freezes every weight before the adapters are put on."""
    model: Any = disturbed(interpolation="dlerpin")
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    adapted = get_peft_model(model.requires_grad_(False), LoraConfig(r=1, target_modules=["q_proj"]))
    model = adapted.merge_and_unload()
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == trained
