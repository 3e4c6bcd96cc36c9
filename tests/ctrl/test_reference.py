"""ctrl.reference: the base as a model of its own, with the tensors of the expanded model."""

from __future__ import annotations

import copy
import warnings
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch

import ctrl
from ctrl.layer import ADDED
from tests.helpers.families import EVERY, build, perturb
from tests.helpers.tiny_llama import IDS, disturbed, expanded, tiny
from tests.helpers.trainers import dpo_trainer, hf_trainer

SETTINGS: list[dict[str, Any]] = [
    {},
    {"structure": "hybrid"},
    {"structure": "stack"},
    {"expanded": "lora"},
    {"divergence": "attention"},
    {"norm_mix": "learned", "dtype": torch.bfloat16},
]


def new_bytes(plain: Any, model: Any) -> int:
    """Bytes of the tensors of one model that are not those of the other."""
    held = {t.data_ptr() for t in chain(model.parameters(), model.buffers())}
    return sum(t.nbytes for t in chain(plain.parameters(), plain.buffers()) if t.data_ptr() not in held)


def names(model: Any) -> list[str]:
    return [name for name, _ in chain(model.named_parameters(), model.named_buffers())]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_it_is_the_base_and_shares_every_tensor(settings: dict[str, Any]) -> None:
    model = expanded(**settings)
    plain, base = ctrl.reference(model), tiny().to(settings.get("dtype", torch.float32)).eval()  # type: ignore[arg-type]
    assert type(plain) is type(base)
    assert names(plain) == names(base)
    assert not any(f".{part}" in name for part in ADDED for name in names(plain))
    assert new_bytes(plain, model) == 0
    assert not any(p.requires_grad for p in plain.parameters())
    base.set_attn_implementation(model.config._attn_implementation)
    assert torch.equal(plain(IDS).logits, base(IDS).logits)
    assert not hasattr(plain(IDS, labels=IDS), "divergence")
    assert model.train()(IDS, labels=IDS).divergence is not None
    assert torch.equal(plain(IDS).logits, base(IDS).logits)


@pytest.mark.parametrize("family", EVERY)
def test_every_family_has_one(family: str) -> None:
    base = build(family).eval()
    model = ctrl.expand(copy.deepcopy(base), ctrl.ControlConfig(layers=2))
    perturb(model)
    plain = ctrl.reference(model)
    assert new_bytes(plain, model) == 0
    assert torch.equal(plain(input_ids=IDS).logits, base(input_ids=IDS).logits)


def test_what_else_trains_is_copied_as_it_is_now() -> None:
    model: Any = expanded()
    model.model.norm.weight.requires_grad_(True)
    plain = ctrl.reference(model)
    assert new_bytes(plain, model) == model.model.norm.weight.nbytes
    before = plain(IDS).logits
    with torch.no_grad():
        model.model.norm.weight.mul_(2)
    assert torch.equal(plain(IDS).logits, before)
    assert model.model.norm.weight.requires_grad
    assert not any(p.requires_grad for p in plain.parameters())


def test_a_model_that_was_trained_has_one_too(tmp_path: Path) -> None:
    model = expanded()
    hf_trainer(model, tmp_path, bf16=True).train()
    plain = ctrl.reference(model)
    assert torch.equal(plain(IDS).logits, tiny().eval()(IDS).logits)
    assert "forward" not in vars(plain)
    with pytest.raises(ctrl.ConfigError, match=r"is not expanded: call ctrl\.expand"):
        ctrl.reference(plain)


def test_moved_with_the_model_the_tensors_stay_one() -> None:
    model = expanded()
    plain = ctrl.reference(model)
    for moved in (plain, model):
        moved.to(torch.float64)  # replaces the data of each parameter, as .to(device) does; buffers are replaced
    assert new_bytes(plain, model) == sum(buffer.nbytes for buffer in plain.buffers()) < 100
    assert plain(IDS).logits.dtype == torch.float64


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"bf16": True}, {"gradient_checkpointing": True}])
def test_dpo_has_the_losses_of_a_separate_copy(settings: dict[str, Any], tmp_path: Path) -> None:
    losses = []
    for shared in (False, True):
        model = expanded()
        plain = ctrl.reference(model) if shared else tiny()
        trainer = dpo_trainer(model, tmp_path / str(shared), plain, **settings)
        ctrl.attach(trainer).train()
        assert (new_bytes(trainer.ref_model, model) == 0) == shared
        losses.append([row["loss"] for row in trainer.state.log_history if "loss" in row])
        merged = ctrl.merge_back(model)
        assert not torch.equal(merged.eval()(IDS).logits, tiny().eval()(IDS).logits)
    assert len(losses[0]) == 3
    assert losses[0] == losses[1]
    assert len(set(losses[0])) == 3  # it does train


@pytest.mark.parametrize("unfrozen", ["before", "after", "never"])
def test_a_shared_weight_that_trains_is_said(unfrozen: str) -> None:
    """It would move the reference of a DPO or KL loss with the model."""
    model = disturbed().train()
    if unfrozen == "before":
        model.model.norm.weight.requires_grad_(True)
    made = ctrl.reference(model)
    if unfrozen == "after":
        model.model.norm.weight.requires_grad_(True)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(2):
            model(input_ids=IDS, labels=IDS)
    said = [str(w.message) for w in seen if "the model of ctrl.reference shares it" in str(w.message)]
    assert len(said) == (unfrozen == "after")
    assert (made.model.norm.weight is model.model.norm.weight) == (unfrozen != "before")


@pytest.mark.parametrize(
    "use", [ctrl.unload, lambda model: ctrl.merge_back(model, in_place=True)], ids=["unload", "merge"]
)
@pytest.mark.parametrize("alive", [True, False])
def test_a_model_taken_apart_leaves_the_reference_as_it_is_and_says_that_it_shares(use: Any, alive: bool) -> None:
    model, base = disturbed(), tiny().eval()
    made = ctrl.reference(model) if alive else None
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        plain = use(model)
    assert any("a model of ctrl.reference shares them" in str(w.message) for w in seen) == alive
    assert all(p.requires_grad for p in plain.parameters())
    if made is not None:
        assert torch.equal(made(IDS).logits, base(IDS).logits)


@pytest.mark.parametrize("settings", SETTINGS[:4] + SETTINGS[5:], ids=str)
def test_after_training_the_base_is_not_the_model_before(settings: dict[str, Any]) -> None:
    """DPO after SFT compares with the SFT model: the base in its place is another objective."""
    dtype = settings.get("dtype", torch.float32)
    config = ctrl.ControlConfig(layers=2, **{k: v for k, v in settings.items() if k != "dtype"})
    model = ctrl.expand(tiny().to(dtype), config)
    for trained in (False, True):
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            ctrl.reference(model)
        assert any("it is not the model as it is now" in str(w.message) for w in seen) == trained
        copied = [p for n, p in model.named_parameters() if p.requires_grad and ".expanded." in n]
        torch.optim.AdamW(copied, 1e-3).zero_grad()
        model(input_ids=IDS, labels=IDS).loss.backward()
        torch.optim.AdamW(copied, 1e-3).step()
