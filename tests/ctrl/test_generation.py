"""ctrl.generation: a saved expansion generates as the model that was saved."""

from __future__ import annotations

import copy
import json
import pickle
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForSequenceClassification

import ctrl
from ctrl.generation import ends, padding, settings
from tests.helpers.tiny_llama import IDS, disturbed, tiny

SET = {"do_sample": True, "temperature": 0.5, "repetition_penalty": 1.5, "max_new_tokens": 7}
SET |= {"forced_eos_token_id": 5, "forced_bos_token_id": 4}


@pytest.mark.parametrize(("given", "expected"), [(None, []), (3, [3]), ([3, 5], [3, 5]), ((5,), [5])])
def test_the_ends_of_replies_are_a_list(given: Any, expected: list[int]) -> None:
    model: Any = tiny()
    model.generation_config.eos_token_id = given
    assert ends(model) == expected
    assert ends(LlamaForSequenceClassification(tiny().config)) == []


def test_settings_of_generation_travel_with_the_copies(tmp_path: Path) -> None:
    """They are in no other file of the folder, and merge_back and an export keep them."""
    base, folder = tmp_path / "base", tmp_path / "trained"
    tiny().save_pretrained(base)
    model = disturbed()
    assert settings(model) == settings(LlamaForSequenceClassification(tiny().config)) == {}
    model.generation_config.update(**SET)
    ctrl.save(model, folder)
    assert settings(ctrl.load(base, folder)) == SET
    with pytest.warns(UserWarning, match=r"saved with other settings of generation .*'temperature': 0.5"):
        assert settings(ctrl.load(tiny(), folder)) == {}  # the caller's own
    held: Any = tiny()
    held.generation_config.update(**SET)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ctrl.load(held, folder)
    held = tiny()
    held.generation_config.update(**SET, top_k=3, num_beams=2)
    with pytest.warns(UserWarning, match=r"saved with other settings .*: \{[^}]*'num_beams': ") as seen:
        ctrl.load(held, folder)  # those that only the base has
    assert "temperature" not in str(seen[0].message)
    held = tiny()
    held.generation_config.update(**SET)
    held.generation_config.update(forced_eos_token_id=6, forced_bos_token_id=None)
    held.save_pretrained(base)
    ctrl.save(disturbed(), folder)
    assert settings(ctrl.load(base, folder)) == {"forced_eos_token_id": 6}  # earlier versions have not saved it
    file = folder / "control_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "generation": "cold"}))
    with pytest.raises(ctrl.CheckpointError, match="not a control config"):
        ctrl.load(base, folder)
    file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "generation"}))
    assert settings(ctrl.load(base, folder)) == settings(held)  # a folder from before


def test_settings_that_transformers_calls_invalid_can_be_saved_again(tmp_path: Path) -> None:
    """Many published bases have a temperature next to do_sample: false; with an end of turn added they were refused."""
    base, folder, plain = tmp_path / "base", tmp_path / "trained", tmp_path / "plain"
    tiny().save_pretrained(base)
    (base / "generation_config.json").write_text(json.dumps({"do_sample": False, "temperature": 0.6}))
    model = ctrl.expand(AutoModelForCausalLM.from_pretrained(base), ctrl.ControlConfig(layers=1))
    model.generation_config.eos_token_id = [5]  # type: ignore[union-attr]
    ctrl.save(model, folder)
    ctrl.merge_back(ctrl.load(base, folder)).save_pretrained(plain)
    written = json.loads((plain / "generation_config.json").read_text())
    assert (written["do_sample"], written["temperature"], written["eos_token_id"]) == (False, 0.6, [5])


@pytest.mark.parametrize("pad", [None, 0, 7])
def test_a_classifier_s_padding_is_that_of_the_save_or_it_is_said(pad: int | None, tmp_path: Path) -> None:
    """It reads the last token that is no padding. Scripts and Trainer set the tokenizer's, in memory alone."""

    def made(token: int | None) -> Any:
        model = LlamaForSequenceClassification(tiny().config)
        model.config.pad_token_id = token
        return model

    base = made(7)
    state = base.state_dict()
    model = ctrl.expand(base, ctrl.ControlConfig(layers=1))
    assert (padding(model), padding(tiny())) == (7, None)
    ctrl.save(model, tmp_path)
    other = made(pad)
    other.load_state_dict(state, strict=False)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        loaded = ctrl.load(other, tmp_path)
    assert any("model.config.pad_token_id = 7" in str(w.message) for w in seen) == (pad != 7)
    loaded.config.pad_token_id = 7
    assert (loaded.eval()(IDS).logits - model.eval()(IDS).logits).abs().max() == 0


@pytest.mark.parametrize(
    ("saved", "here", "said"),
    [
        ({0: "toxic", 1: "fine"}, {0: "fine", 1: "toxic"}, True),
        ({0: "toxic", 1: "fine"}, {0: "LABEL_0", 1: "LABEL_1"}, True),
        ({0: "toxic", 1: "fine"}, {0: "toxic", 1: "fine"}, False),
        ({0: "LABEL_0", 1: "LABEL_1"}, {0: "toxic", 1: "fine"}, False),  # no names were given
    ],
)
def test_a_classifier_s_classes_are_those_of_the_save_or_it_is_said(
    saved: dict[int, str], here: dict[int, str], said: bool, tmp_path: Path
) -> None:
    """The trained head gives an index, and the base at hand its name: "fine" for what is toxic."""

    def made(names: dict[int, str]) -> Any:
        config = tiny().config
        config.id2label, config.label2id = names, {name: i for i, name in names.items()}
        with torch.random.fork_rng():
            torch.manual_seed(1)
            return LlamaForSequenceClassification(config)

    ctrl.save(ctrl.expand(made(saved), ctrl.ControlConfig(layers=1)), tmp_path)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        ctrl.load(made(here), tmp_path)
    assert any("answer has another name" in str(w.message) for w in seen) == said


def test_replies_end_where_those_of_the_saved_model_did(tmp_path: Path) -> None:
    """A trainer adds a chat template's end of turn to the ends of a base, in memory alone."""
    tiny().save_pretrained(tmp_path / "base")
    base, folder = str(tmp_path / "base"), tmp_path / "trained"
    model = disturbed()
    ctrl.save(model, folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain = ctrl.load(tiny().eval(), folder).generation_config
    model.generation_config.eos_token_id = [7, 9]
    ctrl.save(model, folder)
    assert ctrl.load(base, folder).generation_config.eos_token_id == [7, 9]
    with pytest.warns(UserWarning, match=r"eos_token_id=\[7, 9\], this base has .* stops at other tokens"):
        held = ctrl.load(tiny().eval(), folder)
    assert held.generation_config.eos_token_id == plain.eos_token_id  # the caller's own
    file = folder / "control_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "ends": ["</s>"]}))
    with pytest.raises(ctrl.CheckpointError, match="not a control config"):
        ctrl.load(base, folder)
    file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "ends"}))
    assert ctrl.load(base, folder).generation_config.eos_token_id == plain.eos_token_id  # a folder from before


def test_the_base_generates_with_its_own_settings(tmp_path: Path) -> None:
    """pretrained, unload and reference promise the base; a merged model and another save are of the expansion."""
    base, folder, again = tmp_path / "base", tmp_path / "trained", tmp_path / "again"
    plain: Any = tiny()
    plain.generation_config.update(eos_token_id=[7], repetition_penalty=1.1, no_repeat_ngram_size=3)
    plain.save_pretrained(base)
    model = disturbed()
    model.generation_config.update(**SET, eos_token_id=[7, 9])  # type: ignore[union-attr]
    ctrl.save(model, folder)
    loaded, own = ctrl.load(base, folder), (settings(plain), ends(plain))
    saved = (settings(loaded), ends(loaded))
    assert seen(loaded) == saved != own
    loaded.generation_config.max_new_tokens = 20  # type: ignore[union-attr]
    saved[0]["max_new_tokens"] = own[0]["max_new_tokens"] = 20  # the user's stays everywhere
    with ctrl.pretrained(loaded):
        assert seen(loaded) == own
        with ctrl.pretrained(loaded):
            pass
        assert seen(loaded) == own
        assert seen(ctrl.merge_back(loaded)) == saved
        ctrl.save(loaded, again)
        with pytest.warns(UserWarning, match="copied inside ctrl.pretrained"):
            off = copy.deepcopy(loaded)
    assert seen(off) == own
    assert seen(loaded) == seen(pickle.loads(pickle.dumps(loaded))) == seen(ctrl.load(base, again)) == saved
    assert seen(ctrl.merge_back(loaded)) == saved
    assert seen(ctrl.reference(loaded)) == own
    with ctrl.pretrained(loaded):
        former: Any = ctrl.swap(loaded, ctrl.swap(loaded, folder))  # type: ignore[arg-type]
        assert former is not None
        assert seen(loaded) == own
    assert seen(loaded) == saved
    loaded.generation_config.temperature = 0.9  # type: ignore[union-attr]
    unloaded = ctrl.unload(loaded)
    assert seen(unloaded) == ({**own[0], "temperature": 0.9}, own[1])
    unloaded.save_pretrained(tmp_path / "plain")


def test_an_expansion_takes_its_settings_along_when_it_is_swapped(tmp_path: Path) -> None:
    base, folder = tmp_path / "base", tmp_path / "trained"
    tiny().save_pretrained(base)
    model = disturbed()
    model.generation_config.update(**SET)  # type: ignore[union-attr]
    ctrl.save(model, folder)
    other = disturbed(seed=6)
    ctrl.save(other, tmp_path / "other")
    loaded = ctrl.load(base, folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        waiting: Any = ctrl.swap(loaded, tmp_path / "other")
        assert settings(loaded) == {}
        ctrl.swap(loaded, waiting)
    assert settings(loaded) == SET


def seen(model: Any) -> tuple[dict[str, Any], list[int]]:
    """The settings that `generate` of this model follows now."""
    bare: Any = SimpleNamespace(generation_config=model.generation_config)
    return settings(bare), ends(bare)
