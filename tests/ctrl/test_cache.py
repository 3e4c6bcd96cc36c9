"""Expanded models use caches of every kind, and refuse one that was filled without the copies."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache, StaticCache

import ctrl
from tests.helpers.families import EVERY, build, perturb
from tests.helpers.tiny_llama import IDS, MASK, disturbed


@pytest.mark.parametrize("structure", ["concat", "stack", "hybrid"])
@pytest.mark.parametrize("implementation", ["dynamic", "static", "beams", "config-less"])
@pytest.mark.slow
def test_every_cache_gives_the_tokens_of_none(structure: str, implementation: str) -> None:
    model = disturbed(structure=structure)
    kwargs: dict[str, object] = {"attention_mask": MASK, "max_new_tokens": 24, "do_sample": False}
    if implementation == "beams":
        kwargs["num_beams"] = 3
    expected = model.generate(IDS, **kwargs, use_cache=False)
    if implementation == "static":
        kwargs["past_key_values"] = StaticCache(config=model.config, max_cache_len=40)
    if implementation == "config-less":
        kwargs["past_key_values"] = DynamicCache()
    assert torch.equal(model.generate(IDS, **kwargs), expected)
    with ctrl.pretrained(model):
        base = model.generate(IDS, attention_mask=MASK, max_new_tokens=24, do_sample=False, use_cache=False)
    assert not torch.equal(base, expected[:, : base.shape[1]])


@pytest.mark.parametrize("structure", ["concat", "stack", "hybrid"])
@pytest.mark.parametrize("family", EVERY)
@pytest.mark.slow
def test_a_static_cache_gives_the_tokens_of_a_dynamic_one(family: str, structure: str) -> None:
    model = ctrl.expand(build(family), ctrl.ControlConfig(structure=structure, layers=2))
    perturb(model, seed=3)
    kwargs = {"attention_mask": MASK, "max_new_tokens": 16, "do_sample": False}
    static = StaticCache(config=model.config, max_cache_len=40)
    assert torch.equal(model.generate(IDS, **kwargs, past_key_values=static), model.generate(IDS, **kwargs))


def test_a_cache_filled_without_the_copies_is_refused() -> None:
    model = disturbed()
    with ctrl.pretrained(model):
        cache = model(IDS, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="past_key_values was filled while the expanded layers did not run"):
        model(IDS[:, :1], past_key_values=cache)
