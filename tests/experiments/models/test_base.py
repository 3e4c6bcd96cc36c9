"""The base model: the shipped file, and a system turn that its template begins with."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from experiments.common.errors import ModelError
from experiments.data.items import Item
from experiments.models.base import _gguf_file as gguf_file
from experiments.models.base import set_system
from experiments.models.tokens import (
    prompt_ids,
)
from tests.helpers.encoded import encode


class TestSetSystem:
    @pytest.fixture
    def tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
        return copy.deepcopy(tokenizer)  # the session's own stays as it is

    def test_prompts_begin_with_the_given_turn(self, tokenizer: PreTrainedTokenizerBase) -> None:
        before = tokenizer.decode(prompt_ids(tokenizer, "Hello"))
        set_system(tokenizer, 'Say "no".\nÄ{{1}}')
        text = tokenizer.decode(prompt_ids(tokenizer, "Hello"))
        assert text.startswith('<|im_start|>system\nSay "no".\nÄ{{1}}<|im_end|>\n')
        assert text.partition("<|im_end|>")[2] == before.partition("<|im_end|>")[2]

    def test_an_empty_one_leaves_it_empty_and_rows_hold_it(self, tokenizer: PreTrainedTokenizerBase) -> None:
        set_system(tokenizer, "")
        row = encode(Item("2 + 3 =", "5"), tokenizer)
        assert tokenizer.decode(row["input_ids"]).startswith(
            "<|im_start|>system\n<|im_end|>\n<|im_start|>user\n2 + 3 ="
        )

    def test_a_system_turn_in_the_chat_wins(self, tokenizer: PreTrainedTokenizerBase) -> None:
        set_system(tokenizer, "mine")
        turns = [{"role": "system", "content": "theirs"}, {"role": "user", "content": "x"}]
        text = str(tokenizer.apply_chat_template(turns, tokenize=False))
        assert "theirs" in text
        assert "mine" not in text

    def test_it_is_saved_with_the_tokenizer(self, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
        set_system(tokenizer, "mine")
        tokenizer.save_pretrained(tmp_path)
        assert prompt_ids(AutoTokenizer.from_pretrained(tmp_path), "x") == prompt_ids(tokenizer, "x")

    def test_no_template_and_one_that_refuses(self, plain_tokenizer: PreTrainedTokenizerBase) -> None:
        plain_tokenizer.chat_template = None
        with pytest.raises(ModelError, match=r"data\.system='x' needs a chat template"):
            set_system(plain_tokenizer, "x")
        plain_tokenizer.chat_template = (
            "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
        )
        with pytest.raises(ModelError, match=r"refuses it \(no system turns\)"):
            set_system(plain_tokenizer, "x")


def test_a_damaged_model_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.models.base.GGUF_SHA256", "0" * 64)
    with pytest.raises(ModelError, match=r"has SHA-256 b179c952.*expected 0000"):
        gguf_file()
    monkeypatch.setattr("experiments.models.base.WHEEL", "no-such-wheel")
    with pytest.raises(ModelError, match=r"not installed: run `make setup`"):
        gguf_file()
