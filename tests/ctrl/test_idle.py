"""Parameters of copies that no gradient reaches, in few tokens or in many."""

from __future__ import annotations

import torch
from torch import nn

import ctrl
from ctrl.idle import idle, leaves
from tests.helpers.architectures import build


def test_leaves_are_the_parameters_of_the_graph() -> None:
    one, other, unused = (nn.Linear(2, 2) for _ in range(3))
    out = one(torch.ones(1, 2)) * other.weight.detach().sum() + other.bias
    assert leaves(out) - {id(None)} == {id(one.weight), id(one.bias), id(other.bias)}
    copied = nn.Module()
    copied.one, copied.other, copied.experts = one, other, nn.ModuleList([unused])
    assert [id(p) for p in idle([copied], leaves(out))] == [id(other.weight)]
    other.weight.requires_grad_(False)  # as the pretrained weights in a low-rank copy
    assert not idle([copied], leaves(out))


def test_parts_that_run_for_long_text_alone_train_too() -> None:
    """DeepSeek-V4 compresses the keys of 128 tokens into one: four tokens never reach its compressor."""
    model = ctrl.expand(build("deepseek_v4"), ctrl.ControlConfig(layers=[0, 3])).train()
    frozen = {name for name, p in model.named_parameters() if ".expanded." in name and not p.requires_grad}
    assert frozen  # what chooses keys by their order has no gradient
    assert all(".indexer." in name for name in frozen)
    ids = torch.arange(260)[None] % 90
    model(input_ids=ids, labels=ids).loss.backward()
    reached = [p.grad is not None for name, p in model.named_parameters() if ".compressor." in name and p.requires_grad]
    assert reached
    assert all(reached)


def test_an_adapter_that_the_layer_passes_by_is_frozen() -> None:
    """Jamba multiplies by the weight of dt_proj itself, without the adapter on it."""
    config = ctrl.ControlConfig(layers=[2, 3], expanded="lora", lora_rank=2)
    model = ctrl.expand(build("jamba"), config).train()
    ids = torch.arange(16)[None]
    model(input_ids=ids, labels=ids).loss.backward()
    lost = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    frozen = [n for n, p in model.named_parameters() if "lora_" in n and not p.requires_grad]
    assert not lost
    assert frozen
    assert all(".dt_proj.lora_" in name for name in frozen)
