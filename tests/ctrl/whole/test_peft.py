"""PEFT on top of an expanded model, and below: copies are never lost without a word."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    LoraConfig,
    PeftModel,
    PromptTuningConfig,
    TaskType,
    get_peft_model,
    prepare_model_for_kbit_training,
)

import ctrl
from tests.helpers.tiny_llama import IDS, disturbed, tiny
from tests.helpers.trainers import sft_trainer

LORA = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
SAID = r"PEFT freezes the copies .* writes adapters alone.* ctrl\.save before get_peft_model"


def on_top(way: str, model: Any, folder: Path) -> None:
    if way == "get_peft_model":
        get_peft_model(model, LORA)
    elif way == "add_adapter":
        model.add_adapter(LORA)
    else:
        sft_trainer_with_adapter(model, folder)


def sft_trainer_with_adapter(model: Any, folder: Path) -> Any:
    trl = pytest.importorskip("trl")
    made = sft_trainer(tiny(), folder)
    return trl.SFTTrainer(
        model, made.args, train_dataset=made.train_dataset, processing_class=made.processing_class, peft_config=LORA
    )


@pytest.mark.parametrize("way", ["get_peft_model", "add_adapter", "SFTTrainer"])
def test_adapters_on_top_are_said_to_freeze_and_leave_out_the_copies(way: str, tmp_path: Path) -> None:
    model = disturbed()
    with pytest.warns(UserWarning, match=SAID):
        on_top(way, model, tmp_path)
    assert not any(p.requires_grad for n, p in model.named_parameters() if ".expanded." in n and "lora" not in n)


@pytest.mark.filterwarnings("ignore:PEFT freezes")
def test_the_two_ways_out_keep_the_copies(tmp_path: Path) -> None:
    """Save both and load both; or merge the adapters, then save."""
    model = disturbed()
    ctrl.save(model, tmp_path / "copies")
    adapted = get_peft_model(model, LORA)
    expected = adapted(input_ids=IDS).logits
    adapted.save_pretrained(tmp_path / "adapters")
    again = PeftModel.from_pretrained(ctrl.load(tiny().eval(), tmp_path / "copies"), tmp_path / "adapters")
    assert torch.equal(again(input_ids=IDS).logits, expected)
    merged = adapted.merge_and_unload()
    assert not hasattr(merged, "peft_config")
    ctrl.save(merged, tmp_path / "merged")  # with the weights outside the copies that the adapters changed
    loaded = ctrl.load(tiny().eval(), tmp_path / "merged")
    torch.testing.assert_close(loaded(IDS).logits, expected, rtol=1e-4, atol=1e-5)


def trains(model: Any) -> set[str]:
    return {name.replace(".base_layer", "") for name, p in model.named_parameters() if p.requires_grad}


def delete_adapter(model: Any) -> None:
    model.add_adapter(LORA)
    model.delete_adapter("default")


@pytest.mark.filterwarnings("ignore:PEFT freezes")
@pytest.mark.parametrize(
    "use",
    [
        lambda model: get_peft_model(model, LORA).unload(),
        lambda model: get_peft_model(model, LORA).merge_and_unload(),
        lambda model: get_peft_model(copy.deepcopy(model), LORA).unload(),
        lambda model: get_peft_model(get_peft_model(model, LORA).unload(), LORA).unload(),
        delete_adapter,
    ],
    ids=["unload", "merge", "a copy", "twice", "delete_adapter"],
)
def test_copies_train_again_after_the_adapters_are_gone(use: Any) -> None:
    model = disturbed(interpolation="dlerp")
    before = trains(model)
    after = use(model) or model
    assert trains(after) == before
    after.train()(input_ids=IDS, labels=IDS).loss.backward()
    assert all(p.grad is not None for p in after.parameters() if p.requires_grad)


@pytest.mark.parametrize("targets", [["q_proj"], ["embed_tokens"]], ids=["on the copies", "elsewhere"])
@pytest.mark.filterwarnings("ignore:You are trying to modify a model with PEFT for a second time")
def test_adapters_next_to_low_rank_copies_are_refused(targets: list[str]) -> None:
    """PEFT would replace, merge or drop the adapters of the copies with its own."""
    with pytest.raises(ctrl.ConfigError, match=r"takes the adapters of these low-rank copies .* load the model again"):
        get_peft_model(disturbed(expanded="lora"), LoraConfig(r=2, target_modules=targets))


def test_a_second_adapter_is_not_said_again() -> None:
    model = disturbed()
    with pytest.warns(UserWarning, match=SAID):
        adapted = get_peft_model(model, LORA)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="PEFT freezes")
        adapted.add_adapter("second", LORA)
    assert not hasattr(disturbed(), "peft_config")


def prompt_tuned() -> Any:
    return get_peft_model(tiny(), PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=2))


def with_adapter() -> Any:
    model = tiny()
    model.add_adapter(LORA)
    return model


@pytest.mark.parametrize("base", [lambda: get_peft_model(tiny(), LORA), with_adapter, prompt_tuned])
@pytest.mark.parametrize("expanded", ["full", "lora"])
def test_expanding_a_model_with_adapters_is_refused_at_once(base: Any, expanded: Any) -> None:
    model = base()
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    with pytest.raises(ctrl.ConfigError, match=r"holds a PEFT adapter.* merge_and_unload\(\) and expand the result"):
        ctrl.expand(model, ctrl.ControlConfig(layers=2, expanded=expanded))
    assert [name for name, p in model.named_parameters() if p.requires_grad] == trained
    assert "control" not in vars(model)


def test_what_the_message_says_works() -> None:
    merged: Any = get_peft_model(tiny(), LORA).merge_and_unload()
    assert len(ctrl.describe(ctrl.expand(merged, ctrl.ControlConfig(layers=2)))) == 2


PROMPTS = PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=4)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")
@pytest.mark.parametrize(
    "freeze", [prepare_model_for_kbit_training, lambda model: get_peft_model(model, PROMPTS), None]
)
def test_a_training_in_which_no_copy_trains_is_said(freeze: Any) -> None:
    model = disturbed()
    used = (freeze(model) if freeze else model).train()
    batch = {"input_ids": IDS, "labels": IDS, "attention_mask": torch.ones_like(IDS)}
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(2):
            used(**batch)
    assert sum("no copy trains: all their parameters are frozen" in str(w.message) for w in seen) == bool(freeze)
