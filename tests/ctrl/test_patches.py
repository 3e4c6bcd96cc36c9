"""Forwards that were set on an instance: refused at expand where a copy would run them, and left out of copies."""

from __future__ import annotations

import copy
import functools
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate.utils import convert_outputs_to_fp32

import ctrl
from ctrl.config import ControlConfig
from ctrl.errors import ConfigError
from tests.helpers.tiny_llama import IDS, disturbed, tiny
from tests.helpers.trainers import fuse_head


def closed_over(module: Any) -> None:
    old = module.forward
    module.forward = lambda x: 2 * old(x)


def by_default(module: Any) -> None:
    def new(x: Any, old: Any = module.forward) -> Any:
        return 2 * old(x)

    module.forward = new


def compiled(module: Any) -> None:
    module.forward = torch.compile(module.forward, backend="eager")


@pytest.mark.parametrize("patch", [closed_over, by_default, compiled])
def test_a_forward_that_a_copy_would_not_get_for_its_own_weights_is_refused(patch: Callable[[Any], None]) -> None:
    """Copies ran the MLP of their layer, and their own never trained."""
    model = tiny()
    patch(model.model.layers[3].mlp)
    ctrl.expand(model, ControlConfig(layers=[0]))
    ctrl.unload(model)
    with pytest.raises(ConfigError, match="layer 3: a LlamaMLP has a forward of its own"):
        ctrl.expand(model, ControlConfig(layers=[3]))


def bound(module: Any) -> None:
    module.forward = types.MethodType(type(module).forward, module)


def partial(module: Any) -> None:
    module.forward = functools.partial(type(module).forward, module)


def whole(module: Any) -> None:
    module.compile(backend="eager")


@pytest.mark.parametrize("patch", [bound, partial, whole])
def test_a_forward_that_is_copied_with_its_module_stays(patch: Callable[[Any], None]) -> None:
    model = tiny()
    patch(model.model.layers[3].mlp)
    ctrl.expand(model, ControlConfig(layers=[3]))
    before = model(IDS).logits
    model.model.layers[3].expanded.mlp.down_proj.weight.data += 0.1
    assert not torch.equal(model(IDS).logits, before)


@pytest.mark.parametrize("half", [False, True])
def test_a_copy_of_a_model_with_a_fused_head_runs_its_own_weights(half: bool) -> None:
    """DPO after SFT: the reference, copy.deepcopy(model), was the model in training itself, whose forward it ran."""
    model: Any = disturbed()
    expected = model(IDS).logits
    fuse_head(model)
    if half:  # as accelerate does around what it finds
        wrapped = torch.autocast("cpu", torch.bfloat16)(model.forward.__func__)
        model.forward = types.MethodType(convert_outputs_to_fp32(wrapped), model)
    reference = copy.deepcopy(model)
    for parameter in model.parameters():
        parameter.data.zero_()
    assert torch.equal(reference(IDS).logits, expected)


def test_the_merged_model_runs_its_own_weights_whatever_was_patched() -> None:
    """A function keeps the module whose forward it calls: the plain model ran the weights before the merge."""
    model = disturbed()
    expected = ctrl.merge_back(model)(IDS).logits
    for layer in model.model.layers:
        layer.mlp.forward = functools.partial(lambda old, x: old(x), layer.mlp.forward)
    torch.testing.assert_close(ctrl.merge_back(model)(IDS).logits, expected, rtol=0, atol=0)
    for layer in model.model.layers:
        layer.mlp.forward = torch.compile(layer.mlp.forward, backend="eager")
    with pytest.warns(UserWarning, match=r"4 modules have a forward of their own .* model\.layers\.0\.mlp"):
        plain = ctrl.merge_back(model)
    assert torch.equal(plain(IDS).logits, expected)
    assert torch.equal(ctrl.merge_back(model, in_place=True)(IDS).logits, expected)


def test_a_copy_and_a_reference_run_no_decoder_of_the_model_in_training() -> None:
    """A decoder's own forward ran the copies in it, also where its model was the reference of a DPO."""
    model, before = disturbed(), disturbed()(IDS).logits
    model.model.forward = torch.compile(model.model.forward, backend="eager")
    for make, expected in ((ctrl.reference, tiny().eval()(IDS).logits), (copy.deepcopy, before)):
        with pytest.warns(UserWarning, match=r"1 modules have a forward of their own .*first: model\)"):
            made = make(model)
        assert torch.equal(made(IDS).logits, expected)
    for parameter in model.parameters():
        parameter.data.zero_()
    assert torch.equal(made(IDS).logits, before)
