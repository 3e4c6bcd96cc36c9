"""Whatever a config asks for: a model starts as its base, gradients are numbers, and what is saved comes back."""

from __future__ import annotations

import dataclasses
import tempfile

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ctrl
from ctrl.config import ControlConfig
from tests.helpers.control_configs import configs
from tests.helpers.families import perturb
from tests.helpers.tiny_llama import tiny

LAYERS = 4


@st.composite
def batches(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    """1 to 3 rows of 2 to 9 tokens, padded left or right, some labels left out."""
    rows, length = draw(st.integers(1, 3)), draw(st.integers(2, 9))
    pads = draw(st.lists(st.integers(0, length - 2), min_size=rows, max_size=rows))
    ids = torch.randint(2, 50, (rows, length), generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))
    mask, left = torch.ones_like(ids), draw(st.booleans())
    for row, count in enumerate(pads):
        mask[row, slice(count) if left else slice(length - count, length)] = 0
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, : draw(st.integers(0, length - 2))] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(configs, st.integers(1, LAYERS), batches())
def test_starts_as_the_base_trains_and_comes_back(
    drawn: ControlConfig, layers: int, batch: dict[str, torch.Tensor]
) -> None:
    config = dataclasses.replace(drawn, layers=layers, norm_mix=0.0, divergence_weight=min(drawn.divergence_weight, 10))
    base, again = tiny().eval(), tiny().eval()
    for model in (base, again):
        model.set_attn_implementation("eager")  # for the attention divergence
    with torch.no_grad():
        expected = base(**batch)
    model = ctrl.expand(base, config)
    start = model(**batch)
    torch.testing.assert_close(start.logits, expected.logits, rtol=1e-4, atol=1e-5)
    if start.divergence is None:  # with weight 0 none is measured
        assert config.divergence_weight == 0
    else:
        assert start.divergence.item() == pytest.approx(0.0, abs=1e-5)
    with torch.no_grad():
        perturb(model)
    model(**batch).loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert parameter.requires_grad
            assert parameter.grad.isfinite().all(), name
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        ctrl.save(model, folder)
        assert torch.equal(ctrl.load(again, folder)(**batch).logits, model(**batch).logits)
