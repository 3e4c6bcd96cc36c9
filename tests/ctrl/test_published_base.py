"""The base of a published checkpoint: its config is compared, settings of generation and the mode are as usual."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import PreTrainedModel

import ctrl
from ctrl.published_base import GENERATION_FILE
from tests.helpers.tiny_llama import IDS, disturbed, tiny

ENDS = [5, 7]


def ending(model: PreTrainedModel) -> PreTrainedModel:
    assert model.generation_config is not None
    model.generation_config.eos_token_id = ENDS  # type: ignore[attr-defined]
    return model


def ends(model: PreTrainedModel) -> object:
    return model.generation_config.eos_token_id  # type: ignore[union-attr]


@pytest.mark.parametrize("structure", ["concat", "stack"])
def test_settings_of_generation_and_eval_mode_come_back(structure: str, tmp_path: Path) -> None:
    model = ending(disturbed(structure=structure))
    ctrl.export_published(model, tmp_path)
    again = ctrl.load_published(tmp_path)
    assert not again.training
    assert ends(again) == ENDS
    (tmp_path / GENERATION_FILE).unlink()
    assert ends(ctrl.load_published(tmp_path, base=ending(tiny()))) == ENDS
    ending(tiny()).save_pretrained(tmp_path / "base")
    assert ends(ctrl.load_published(tmp_path, base=tmp_path / "base")) == ENDS


@pytest.mark.parametrize("noted", [False, True])
@pytest.mark.parametrize("structure", ["concat", "stack"])
def test_a_base_that_computes_something_else_is_said(structure: str, noted: bool, tmp_path: Path) -> None:
    ctrl.export_published(disturbed(structure=structure), tmp_path)
    other = tiny()
    other.config.rope_parameters["rope_theta"] = 77.0
    other.save_pretrained(tmp_path / "base")
    path = tmp_path / "config.json"
    if noted:
        values = json.loads(path.read_text())
        values["expansion"]["expanded_from"] = str(tmp_path / "base")
        path.write_text(json.dumps(values))
    with pytest.warns(UserWarning, match=r"configs that compute different things: .*rope_theta is 10000.0 there, 77"):
        again = ctrl.load_published(tmp_path, base=None if noted else other)
    assert again(IDS).logits.isfinite().all()
