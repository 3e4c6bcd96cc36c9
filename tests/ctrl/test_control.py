"""What the layers of a model share: its settings, in copies of it too."""

from __future__ import annotations

import copy

import torch

import ctrl
from tests.helpers.tiny_llama import disturbed, sequences


def test_alpha_scaling_and_detaching() -> None:
    batch = {k: torch.stack([row[k] for row in sequences()]) for k in ("input_ids", "attention_mask", "labels")}

    def alpha_gradient(**kwargs: object) -> torch.Tensor:
        model = disturbed(interpolation="dlerpin", alpha="learned", divergence_weight=100.0, **kwargs)
        model(**batch).divergence.backward()
        gradient = ctrl.layer.expanded_layers(model)[-1].interpolation.weight.grad
        return torch.zeros(1) if gradient is None else gradient

    assert alpha_gradient(scale_by_alpha=True).abs().max() > 0  # the gate can shrink its own penalty
    assert alpha_gradient(scale_by_alpha=True, detach_alpha=True).abs().max() == 0
    plain, scaled = disturbed(alpha_start=0.25), disturbed(alpha_start=0.25, scale_by_alpha=True)
    torch.testing.assert_close(scaled(**batch).divergence, 0.25 * plain(**batch).divergence)


def test_a_copy_has_settings_of_its_own_and_no_pass() -> None:
    model = disturbed()
    model.control.begin(ctrl.passes.ForwardPass(None))
    copied = copy.deepcopy(model)
    model.control.end()
    assert copied.control is not model.control
    assert copied.control.current is None
    assert copied.control.layers == model.control.layers
    assert all(layer.control is copied.control for layer in ctrl.layer.expanded_layers(copied))
