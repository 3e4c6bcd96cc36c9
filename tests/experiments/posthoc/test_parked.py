"""Weights and logits in files are those of the model, which may change or go meanwhile."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest
import torch

import ctrl
from experiments.posthoc.operations import depth_shares, merged_in_place, mixed
from experiments.posthoc.parked import Noted, Parked
from tests.helpers.byte_level import byte_llama
from tests.helpers.families import perturb

BATCHES = [{"input_ids": torch.arange(3, 15)[None]}, {"input_ids": torch.arange(20, 28)[None]}]


def test_parked_weights_need_no_model_and_leave_no_file() -> None:
    model = byte_llama(260)
    want, alive = {name: p.detach().clone() for name, p in model.named_parameters()}, weakref.ref(model)
    parked = Parked(dict(model.named_parameters()))
    folder = Path(parked._folder.name)
    del model
    gc.collect()
    assert alive() is None
    assert parked.shapes() == {name: p.shape for name, p in want.items()}
    assert all(torch.equal(parked[name], p) for name, p in want.items())
    with pytest.raises(KeyError, match="nowhere"):
        parked["nowhere"]
    assert folder.is_dir()
    del parked
    gc.collect()
    assert not folder.exists()


def test_logits_are_given_again_after_the_model_has_changed() -> None:
    model = byte_llama(260).eval()
    with torch.no_grad():
        want = [model(**batch).logits for batch in BATCHES]
        noted = Noted(model, BATCHES)
        model.model.norm.weight.zero_()
    assert all(torch.equal(noted(**batch).logits, found) for batch, found in zip(BATCHES, want, strict=True))


@pytest.mark.parametrize("interpolation", ["lerp", "dlerp"])
def test_merging_in_place_has_the_gap_of_a_copy(interpolation: str) -> None:
    model = ctrl.expand(byte_llama(260), ctrl.ControlConfig(layers=2, interpolation=interpolation, divergence="none"))
    perturb(model)
    plain, gap = ctrl.merge_back(model, batches=BATCHES, gap_on=BATCHES)
    merged, found = merged_in_place(model, None, BATCHES)
    assert found == gap
    assert gap.kl > 0
    assert all(torch.equal(p, q) for p, q in zip(merged.parameters(), plain.parameters(), strict=True))


def test_shares_by_depth_mix_as_the_formula_says() -> None:
    base, tuned = byte_llama(260), byte_llama(260)
    with torch.no_grad():
        perturb(tuned)
    start = {name: p.detach().clone() for name, p in base.named_parameters()}
    shares, parked = depth_shares(base, 0.2), Parked(dict(tuned.named_parameters()))
    found = dict(mixed(base, [(shares, parked)]).named_parameters())
    assert {*shares.values()} == {0.2, 1.0}  # two layers
    for name, p in tuned.named_parameters():
        torch.testing.assert_close(found[name], start[name] + shares[name] * (p - start[name]))
