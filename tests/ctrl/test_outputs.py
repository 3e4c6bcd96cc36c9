"""The output with labels: the base class's fields, and lm_loss and divergence next to them."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from transformers.modeling_outputs import CausalLMOutputWithPast

from ctrl.outputs import FIELDS, IGNORED, heed_fields, ignore_fields, tensors, with_loss
from tests.helpers.tiny_llama import expanded, sequences, tiny


@pytest.mark.parametrize("as_dict", [True, False])
def test_the_loss_is_replaced_and_the_rest_stays(as_dict: bool) -> None:
    model = expanded()
    batch = {k: torch.stack([row[k] for row in sequences()]) for k in ("input_ids", "attention_mask", "labels")}
    want = model(**batch)
    out = model(**batch, return_dict=as_dict)
    torch.testing.assert_close(out[0], want.loss)
    torch.testing.assert_close(out[1] if not as_dict else out.logits, want.logits)
    assert isinstance(out, CausalLMOutputWithPast if as_dict else tuple)


def test_an_output_is_rebuilt_from_its_fields() -> None:
    """Autocast wrappers do that."""
    plain = CausalLMOutputWithPast(loss=torch.tensor(1.0), logits=torch.ones(1, 2, 3))
    out = with_loss(plain, torch.tensor(3.0), torch.tensor(2.0))
    again = type(out)(**{f.name: getattr(out, f.name) for f in dataclasses.fields(out)})
    assert (again.loss, again.lm_loss, again.divergence) == (3.0, 1.0, 2.0)
    assert len(list(tensors(out))) == 4


def test_fields_that_two_models_ignore_stay_for_the_second() -> None:
    config = tiny().config
    before = list(getattr(config, IGNORED, None) or [])
    ignore_fields(config)
    ignore_fields(config)
    heed_fields(config)
    assert getattr(config, IGNORED) == [*before, *FIELDS]
    heed_fields(config)
    assert list(getattr(config, IGNORED, None) or []) == before
