"""Which models keep the documents of a row apart: found by a probe, not by a list."""

from __future__ import annotations

import pytest

import ctrl
from experiments.models.packing import documents_apart
from tests.helpers.families import EVERY, build, perturb
from tests.helpers.readers import build_other


@pytest.mark.parametrize("family", EVERY)
def test_documents_apart(family: str) -> None:
    model = build(family)
    assert documents_apart(model)
    ctrl.expand(model, ctrl.ControlConfig(layers=2))
    perturb(model)
    assert documents_apart(model)


def test_no_list_of_families_is_needed() -> None:
    assert documents_apart(build_other("gpt_neo"))


@pytest.mark.parametrize("name", ["opt", "falcon", "bloom", "mpt", "gpt_oss", "mamba", "lfm2"])
def test_documents_that_see_each_other(name: str) -> None:
    assert not documents_apart(build_other(name))


def test_long_rows_of_a_model_that_scales_attention_by_the_index_in_the_row() -> None:
    model = build_other("llama4", floor_scale=64)
    assert documents_apart(model, 64)
    assert not documents_apart(model, 65)
    model.config.attn_temperature_tuning = False
    assert documents_apart(model, 65)
