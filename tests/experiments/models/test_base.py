"""The base model: the shipped file, and folders that cannot be trained as they are."""

from __future__ import annotations

from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model

from experiments.common.errors import ModelError
from experiments.data.encoding import PaddingCollator
from experiments.models.base import _gguf_file as gguf_file
from experiments.models.base import load_base
from tests.helpers.byte_level import byte_base, byte_llama, byte_tokenizer


def test_a_damaged_model_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.models.base.GGUF_SHA256", "0" * 64)
    with pytest.raises(ModelError, match=r"has SHA-256 b179c952.*expected 0000"):
        gguf_file()
    monkeypatch.setattr("experiments.models.base.WHEEL", "no-such-wheel")
    with pytest.raises(ModelError, match=r"not installed: run `make setup`"):
        gguf_file()


def test_a_folder_with_an_adapter_is_no_base(tmp_path: Path) -> None:
    whole = byte_base(tmp_path / "whole")
    adapted = get_peft_model(load_base(whole)[0], LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    adapted.save_pretrained(tmp_path / "adapter")
    byte_tokenizer().save_pretrained(tmp_path / "adapter")
    with pytest.raises(ModelError, match=r"adapter' is an adapter of PEFT.*merge_and_unload") as error:
        load_base(str(tmp_path / "adapter"))
    assert len(str(error.value).splitlines()) == 1


def test_padding_has_an_embedding(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    size = len(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})  # and no resize_token_embeddings
    tokenizer = load_base(byte_base(tmp_path, tokenizer, byte_llama(size)))[1]
    rows = [{"input_ids": ids, "labels": ids, "replayed": False} for ids in ([1, 2, 3], [4])]
    assert PaddingCollator(tokenizer)(rows)["input_ids"].max() < size
