"""The model card of a saved expansion: true of the model, valid on the Hub, and the user's own text stays."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard

import ctrl
from tests.helpers.tiny_llama import IDS, disturbed, tiny


@pytest.mark.parametrize(
    ("settings", "rows"),
    [
        ({}, ["| structure | concat |", "| layers | 1, 3 |", "| interpolation | lerp, alpha fixed, 0.5 at the"]),
        (
            {"interpolation": "dlerp", "alpha": "learned", "layers": [0], "divergence": "cosine"},
            ["| layers | 0 |", "| interpolation | dlerp, alpha learned,", "| divergence | cosine, weight 1.0 |"],
        ),
        ({"structure": "stack"}, ["| structure | stack |", "| interpolation | - |", "| divergence | - |"]),
        ({"expanded": "lora", "lora_rank": 2}, ["| structure | concat, rank 2 |"]),
    ],
)
def test_it_says_what_the_model_is(settings: dict[str, Any], rows: list[str], tmp_path: Path) -> None:
    text = (ctrl.save(disturbed(**settings), tmp_path) / "README.md").read_text()
    assert all(row in text for row in rows), text
    assert "| base | a llama with 4 layers of width 32 |" in text


def test_its_example_loads_the_model(tmp_path: Path) -> None:
    model = disturbed()
    text = (ctrl.save(model, tmp_path) / "README.md").read_text()
    [code] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, Any] = {"base_model": tiny().eval()}
    exec(code.replace("this folder, or its name on the Hub", tmp_path.as_posix()), names)
    assert torch.equal(names["model"](IDS).logits, model(IDS).logits)


@pytest.mark.parametrize(
    ("name", "named"),
    [("meta-llama/Llama-3.2-1B", True), ("/somewhere/base", False), ("models/base", False), ("", False)],
)
def test_only_a_name_of_the_hub_is_a_base_there(
    name: str, named: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Hub refuses a card with another base_model, and a path is nobody else's business."""
    (tmp_path / "models" / "base").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    model = disturbed()
    model.config._name_or_path = name
    written = ModelCard.load(ctrl.save(model, tmp_path / "mine") / "README.md")
    assert written.data.base_model == (name if named else None)
    assert (f'ctrl.load("{name}", ' in written.text) == named
    assert (name in written.text) == (named or not name)


def test_text_of_the_user_stays(tmp_path: Path) -> None:
    path = ctrl.save(disturbed(), tmp_path) / "README.md"
    ctrl.save(disturbed(structure="stack"), tmp_path)
    assert "| structure | stack |" in path.read_text()
    path.write_text("my own")
    ctrl.save(disturbed(), tmp_path)
    assert path.read_text() == "my own"


@pytest.mark.parametrize("in_place", [True, False])
def test_the_base_of_a_second_expansion_is_not_the_first_ones(in_place: bool, tmp_path: Path) -> None:
    """It is the merged model, which has the first one's name in memory: nobody could load the second onto that."""
    model = disturbed()
    model.config._name_or_path = "meta/Llama"
    first = ctrl.save(model, tmp_path / "first")
    plain = ctrl.merge_back(model, in_place=in_place)
    second = ctrl.save(ctrl.expand(plain, ctrl.ControlConfig(layers=1)), tmp_path / "second")
    assert "base_model: meta/Llama" in (first / "README.md").read_text()
    assert "meta/Llama" not in (second / "README.md").read_text()
    with pytest.raises(ctrl.CheckpointError, match="trained on 'meta/Llama, merged with copies', but the weights of"):
        ctrl.load(tiny().eval(), second)
