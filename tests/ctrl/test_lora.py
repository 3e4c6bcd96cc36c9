"""Low-rank adapters: in place of full copies (expanded='lora'), and PEFT's on top of an expanded model."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

import ctrl
from ctrl import copies
from tests.ctrl.test_merge import IDS, disturbed
from tests.ctrl.test_trainer import tiny
from tests.helpers.families import build, perturb


def test_lora_on_top_of_an_expanded_model() -> None:
    model = disturbed()
    before = model(IDS).logits
    peft = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    assert torch.equal(peft(input_ids=IDS).logits, before)
    out = peft(input_ids=IDS, labels=IDS)
    out.loss.backward()
    assert out.divergence > 0
    trained = [n for n, p in peft.named_parameters() if p.grad is not None]
    assert any(".expanded." in n and "lora_" in n for n in trained)
    assert all("lora_" in n for n in trained)


def test_low_rank_copies_start_as_the_base_and_train_alone() -> None:
    base = tiny().eval()
    model = ctrl.expand(copy.deepcopy(base), ctrl.ControlConfig(layers=2, expanded="lora", lora_rank=2))
    assert torch.equal(model(IDS).logits, base(IDS).logits)
    full = ctrl.expand(copy.deepcopy(base), ctrl.ControlConfig(layers=2))
    sizes = [sum(row.trainable for row in ctrl.describe(m)) for m in (model, full)]
    assert sizes[0] < sizes[1] / 4
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
    assert all(torch.equal(frozen[n], p) for n, p in model.named_parameters() if n in frozen)
    assert not torch.allclose(model(IDS).logits, base(IDS).logits)
    with ctrl.pretrained(model):
        assert torch.equal(model(IDS).logits, base(IDS).logits)


def test_the_low_rank_copies_of_a_model_of_conv1d() -> None:
    """GPT-2's projections are no nn.Linear, and hold their weights transposed."""
    base = build("gpt2")
    model = ctrl.expand(
        copy.deepcopy(base), ctrl.ControlConfig(layers=2, expanded="lora", lora_rank=2, alpha_start=1.0)
    )
    assert torch.equal(model(IDS).logits, base(IDS).logits)
    trained = {
        name.rpartition(".lora_")[0].rpartition(".")[2] for name, p in model.named_parameters() if p.requires_grad
    }
    assert trained == {"c_attn", "c_proj", "c_fc"}
    perturb(model)
    assert not torch.allclose(model(IDS).logits, base(IDS).logits, atol=0.01)
    torch.testing.assert_close(ctrl.merge_back(model)(IDS).logits, model(IDS).logits, rtol=1e-4, atol=1e-4)


def test_weights_that_no_adapter_reaches_are_named() -> None:
    with pytest.warns(
        UserWarning, match=r"these weights of MixtralDecoderLayer stay as pretrained: .*experts\.down_proj"
    ):
        model = ctrl.expand(build("mixtral"), ctrl.ControlConfig(layers=1, expanded="lora"))
    assert all("self_attn" in name for name, p in model.named_parameters() if p.requires_grad)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ctrl.expand(tiny(), ctrl.ControlConfig(layers=2, expanded="lora"))


def test_a_refused_low_rank_copy_leaves_the_base_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first copy was made, and its layer frozen, before the second was refused."""
    model, made = tiny(), []

    def second_fails(copied: nn.Module, rank: int) -> nn.Module:
        if made:
            raise ctrl.ConfigError("refused")
        made.append(copies_add_lora(copied, rank))
        return made[0]

    copies_add_lora = copies.add_lora
    monkeypatch.setattr(copies, "add_lora", second_fails)
    kinds = [type(m) for m in model.modules()]
    with pytest.raises(ctrl.ConfigError, match="refused"):
        ctrl.expand(model, ctrl.ControlConfig(layers=2, expanded="lora"))
    assert [type(m) for m in model.modules()] == kinds
    assert all(p.requires_grad for p in model.parameters())


def test_layers_without_a_matrix_to_adapt_are_refused_by_their_own_name() -> None:
    model = tiny()
    for layer in model.model.layers:
        for module in layer.modules():
            for name, child in list(module.named_children()):
                if isinstance(child, nn.Linear | Conv1D):
                    setattr(module, name, nn.Conv1d(2, 2, 1))
    with pytest.raises(ctrl.ConfigError, match="but LlamaDecoderLayer has none: use 'full'"):
        ctrl.expand(model, ctrl.ControlConfig(layers=2, expanded="lora"))
