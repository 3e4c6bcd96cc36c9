"""An expanded layer: what it compares, and what it leaves to the base."""

from __future__ import annotations

import pytest
import torch

import ctrl
from tests.helpers.tiny_llama import IDS, disturbed


def test_plerp_compares_what_proj_projects() -> None:
    """a with b, and P a with b: at one offset their divergences differ, and plerp's is lerp's."""
    found = {}
    for name in ("lerp", "plerp", "proj"):
        model = disturbed(interpolation=name, layers=[0])  # one layer: both branches get the same input
        for layer in ctrl.layer.expanded_layers(model):
            if name != "lerp":
                torch.manual_seed(8)
                layer.interpolation.offset.data.normal_(0, 0.2)
            layer.expanded.load_state_dict(ctrl.layer.expanded_layers(disturbed(layers=[0]))[0].expanded.state_dict())
        out = model(IDS, labels=IDS)
        out.divergence.backward()
        found[name] = out.divergence.item()
        if name == "plerp":
            assert layer.interpolation.offset.grad is None  # the loss of the mix alone trains its P
    assert found["plerp"] == pytest.approx(found["lerp"], rel=1e-6)
    assert found["proj"] != pytest.approx(found["lerp"], rel=1e-3)
