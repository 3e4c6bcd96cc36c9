"""The digest of a model's weights: what changes it, and when it is looked up instead of computed."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel

import ctrl
from experiments.models.base import load_base
from experiments.models.weights_digest import frozen_digest, weights_digest
from tests.helpers.byte_level import byte_llama
from tests.helpers.families import perturb


def test_names_values_and_dtypes_count(model: PreTrainedModel) -> None:
    digest = weights_digest(model)
    assert digest == weights_digest(copy.deepcopy(model))
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.model.norm.weight[3] += 1e-6
    half = copy.deepcopy(model).to(torch.bfloat16)
    assert len({digest, weights_digest(other), weights_digest(half)}) == 3


@pytest.mark.slow
def test_is_looked_up_until_the_files_change(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known, folder = tmp_path / "weights.json", tmp_path / "model"
    load_base(base)[0].save_pretrained(folder)
    load_base(base)[1].save_pretrained(folder)
    model = load_base(str(folder))[0]
    digest = weights_digest(model, known)
    (stamp,) = json.loads(known.read_text())
    known.write_text(json.dumps({stamp: "looked up"}))
    assert weights_digest(model, known) == "looked up"
    assert weights_digest(model) == digest
    with torch.no_grad():
        model.model.norm.weight[0] += 1.0
    model.save_pretrained(folder)
    changed = weights_digest(load_base(str(folder))[0], known)
    assert changed not in (digest, "looked up")
    known.write_text("{")
    assert weights_digest(load_base(str(folder))[0], known) == changed


def test_other_weights_of_the_same_size_and_time(tmp_path: Path) -> None:
    """As in an image with fixed times, or copied with `cp -p`."""
    known, digests = tmp_path / "weights.json", []
    for share in (1.0, 0.5):
        model = byte_llama(260)
        with torch.no_grad():
            model.model.embed_tokens.weight.mul_(share)
        model.save_pretrained(tmp_path / "m")
        os.utime(tmp_path / "m" / "model.safetensors", ns=(1, 1))
        model.name_or_path = str(tmp_path / "m")
        digests.append(weights_digest(model, known))
        assert digests[-1] == weights_digest(model)
    assert len({*digests}) == len(json.loads(known.read_text())) == 2


def test_a_model_from_no_folder_is_hashed_each_time(model: PreTrainedModel, tmp_path: Path) -> None:
    model.name_or_path = "owner/name"
    assert weights_digest(model, tmp_path / "weights.json") == weights_digest(model)
    assert not (tmp_path / "weights.json").exists()


def test_a_model_of_the_hub_is_looked_up_by_its_commit(model: PreTrainedModel, tmp_path: Path) -> None:
    """Its weights are hashed once for each commit, not in each run and trial."""
    known, model.name_or_path = tmp_path / "weights.json", "owner/name"
    for commit in ("a" * 40, "b" * 40):
        model.config._commit_hash = commit
        assert weights_digest(model, known) == weights_digest(model)
    stamps = json.loads(known.read_text())
    assert len(stamps) == 2
    known.write_text(json.dumps(dict.fromkeys(stamps, "looked up")))
    assert weights_digest(model, known) == "looked up"
    assert weights_digest(model.to(torch.bfloat16), known) != "looked up"


@pytest.mark.parametrize("of_peft", [True, False])
def test_the_frozen_part_of_a_model_is_known_again_whatever_trained(model: PreTrainedModel, of_peft: bool) -> None:
    def adapted(base: PreTrainedModel) -> Any:
        if of_peft:
            return get_peft_model(copy.deepcopy(base), LoraConfig(r=2, target_modules=["q_proj"]))  # type: ignore[arg-type]
        return ctrl.expand(copy.deepcopy(base), ctrl.ControlConfig(layers=1))

    first = adapted(model)
    digest = frozen_digest(first)
    with torch.no_grad():
        perturb(first)
        assert frozen_digest(first) == frozen_digest(adapted(model)) == digest
        model.get_input_embeddings().weight.mul_(2)
    assert frozen_digest(adapted(model)) != digest
