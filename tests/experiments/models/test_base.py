"""The base model: the shipped file, and folders that cannot be trained as they are."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

import ctrl
from experiments.common.errors import ModelError
from experiments.config import parse_config
from experiments.data.encoding import PaddingCollator
from experiments.evaluation.cache import BaseCache
from experiments.methods import MethodContext
from experiments.models import base
from experiments.models.base import _gguf_file as gguf_file
from experiments.models.base import load_base, load_model, load_tokenizer, model_config, shipped_folder
from experiments.models.precision import Precision
from tests.helpers.byte_level import byte_base, byte_llama, byte_tokenizer
from tests.helpers.small_run import small_arm

IDS = torch.arange(24).view(2, 12)


def test_a_damaged_model_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.models.base.GGUF_SHA256", "0" * 64)
    with pytest.raises(ModelError, match=r"has SHA-256 b179c952.*expected 0000"):
        gguf_file()
    monkeypatch.setattr("experiments.models.base.WHEEL", "no-such-wheel")
    with pytest.raises(ModelError, match=r"not installed: run `make setup`"):
        gguf_file()


@pytest.mark.parametrize("note", ["of the conversion", "none, of an earlier version"])
def test_files_of_the_shipped_model_that_were_changed_are_made_again(
    note: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wheel's file has a SHA-256; a byte of the converted one was another model under the same name."""
    made: list[Path] = []

    def convert(gguf: Path, folder: Path) -> None:
        made.append(folder)
        folder.mkdir()
        for name in ("config.json", "model.safetensors"):
            (folder / name).write_text(f"{name} whole")

    monkeypatch.setenv("CONTROL_LLM_CACHE", str(tmp_path))
    monkeypatch.setattr(base, "_convert", convert)
    monkeypatch.setattr(base, "_gguf_file", lambda: tmp_path)
    folder = shipped_folder()
    if note.startswith("none"):
        folder.with_suffix(".json").unlink()
    assert shipped_folder() == folder
    assert made == [folder]
    weights = folder / "model.safetensors"
    for damage in (lambda: weights.write_text("model.safetensors whale"), weights.unlink):
        damage()
        shipped_folder()
        assert weights.read_text() == "model.safetensors whole"
    assert len(made) == 3
    shutil.copytree(folder, tmp_path / "copy")  # other times, the same files
    shutil.rmtree(folder)
    (tmp_path / "copy").rename(folder)
    shipped_folder()
    assert len(made) == 3


def test_a_folder_with_an_adapter_is_no_base(tmp_path: Path) -> None:
    whole = byte_base(tmp_path / "whole")
    adapted = get_peft_model(load_base(whole)[0], LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    adapted.save_pretrained(tmp_path / "adapter")
    byte_tokenizer().save_pretrained(tmp_path / "adapter")
    with pytest.raises(ModelError, match=r"adapter' is an adapter of PEFT.*merge_and_unload") as error:
        load_base(str(tmp_path / "adapter"))
    assert len(str(error.value).splitlines()) == 1


def test_a_base_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    byte_base(tmp_path / "models" / "mine")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))  # Windows
    assert model_config("~/models/mine").vocab_size == len(load_tokenizer("~/models/mine"))


def test_padding_has_an_embedding(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    size = len(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})  # and no resize_token_embeddings
    tokenizer = load_base(byte_base(tmp_path, tokenizer, byte_llama(size)))[1]
    rows = [{"input_ids": ids, "labels": ids, "replayed": False} for ids in ([1, 2, 3], [4])]
    assert PaddingCollator(tokenizer)(rows)["input_ids"].max() < size


@pytest.mark.parametrize("read", [load_base, load_model])
@pytest.mark.parametrize(("given", "where"), [(None, {"": torch.device("cuda")}), ("balanced", "balanced")])
def test_weights_go_straight_to_a_gpu(read: Any, given: Any, where: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are never whole in main memory, which all processes of a machine with several GPUs share."""
    asked: list[Any] = []

    def load(name: str, source: str, remote_code: bool, dtype: str, device_map: Any, *rest: Any) -> None:
        asked.append(device_map)
        raise ModelError("stop here")

    monkeypatch.setattr(base, "device", lambda: torch.device("cuda"))
    monkeypatch.setattr(base, "load_whole", load)
    monkeypatch.setattr(base, "load_weights", load)
    with pytest.raises(ModelError, match="stop here"):
        read("any", device_map=given)
    assert asked == [where]


def test_attention_is_computed_as_the_config_says(tmp_path: Path) -> None:
    """Divergence `attention` needs eager, and the base's results in the cache are not those of sdpa."""
    arm = {"method": "control", "control": {"layers": [0], "divergence": "attention"}}
    given = small_arm(byte_base(tmp_path), **arm)
    eager = parse_config(given.to_dict() | {"attention": "eager"})
    assert given.digest() != eager.digest()
    models = [config.load_base()[0] for config in (given, eager)]
    keys = [BaseCache(tmp_path, model, byte_tokenizer(), Precision("fp32")).key for model in models]
    assert keys[1] == keys[0] | {"attention": "eager"}
    prepared = eager.arms[0].build().prepare(models[1], MethodContext(0, Precision("fp32")))
    assert prepared(input_ids=IDS, labels=IDS).divergence is not None
    with pytest.raises(ctrl.ConfigError, match="needs attention weights"):
        given.arms[0].build().prepare(models[0], MethodContext(0, Precision("fp32")))
