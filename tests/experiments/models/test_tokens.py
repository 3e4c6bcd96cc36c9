"""How questions, replies and texts become token ids."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerBase

from experiments.common.errors import ConfigError
from experiments.data.items import Item
from experiments.models.tokens import (
    IGNORED,
    continuation_ids,
    end_of_text,
    end_of_turn,
    prompt_ids,
    reply_ids,
    user_opening,
)
from tests.helpers.encoded import encode


class TestTokens:
    def test_training_prompt_is_the_generation_prompt(self, tokenizer: PreTrainedTokenizerBase) -> None:
        item = Item("What is 2 + 3?", "5")
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": item.question}], add_generation_prompt=True, return_dict=True
        )["input_ids"]
        encoded = encode(item, tokenizer)
        assert prompt_ids(tokenizer, item.question) == prompt
        assert encoded["input_ids"][: len(prompt)] == prompt
        assert encoded["labels"][: len(prompt)] == [IGNORED] * len(prompt)

    def test_default_system_turn_is_kept(self, tokenizer: PreTrainedTokenizerBase) -> None:
        assert "named SmolLM" in tokenizer.decode(prompt_ids(tokenizer, "Hello"))

    def test_whole_conversation_is_the_template_up_to_the_end_of_turn(self, tokenizer: PreTrainedTokenizerBase) -> None:
        item = Item("What is 2 - 30?", "-28")
        turns = [{"role": "user", "content": item.question}, {"role": "assistant", "content": item.answer}]
        text = str(tokenizer.apply_chat_template(turns, tokenize=False))
        assert tokenizer.decode(encode(item, tokenizer)["input_ids"]) == text.removesuffix("\n")

    def test_labels_are_the_answer_and_its_end(self, tokenizer: PreTrainedTokenizerBase) -> None:
        labels = [x for x in encode(Item("q", "1234"), tokenizer)["labels"] if x != IGNORED]
        assert tokenizer.decode(labels) == "1234<|im_end|>"
        assert labels[-1] == end_of_turn(tokenizer)

    def test_end_of_turn_comes_from_the_template_not_from_eos(self, plain_tokenizer: PreTrainedTokenizerBase) -> None:
        plain_tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}\n<file_sep>\n{% endfor %}"
        assert plain_tokenizer.convert_ids_to_tokens(end_of_turn(plain_tokenizer)) == "<file_sep>"

    def test_no_token_ends_a_reply(self, plain_tokenizer: PreTrainedTokenizerBase) -> None:
        plain_tokenizer.eos_token = None
        with pytest.raises(ConfigError, match="set its eos_token"):
            end_of_turn(plain_tokenizer)

    def test_base_model_without_a_template(self, plain_tokenizer: PreTrainedTokenizerBase) -> None:
        encoded = encode(Item("1 + 1?", "2"), plain_tokenizer)
        assert plain_tokenizer.decode(encoded["input_ids"]) == "Question: 1 + 1?\nAnswer: 2<|im_end|>"
        assert plain_tokenizer.decode(prompt_ids(plain_tokenizer, "1 + 1?")) == "Question: 1 + 1?\nAnswer:"
        assert plain_tokenizer.decode(reply_ids(plain_tokenizer, "1 + 1?", "2")) == " 2"

    def test_continuation_where_the_boundary_lies_inside_a_token(self, tokenizer: PreTrainedTokenizerBase) -> None:
        assert tokenizer.decode(continuation_ids(tokenizer, "The capital of France is", " Paris")) == " Paris"
        assert tokenizer.decode(continuation_ids(tokenizer, "unbeliev", "able")) == "able"

    def test_a_user_opening_goes_on_with_the_question(self, tokenizer: PreTrainedTokenizerBase) -> None:
        opening = tokenizer.decode(user_opening(tokenizer))
        assert opening.endswith("<|im_start|>user\n")
        assert str(tokenizer.decode(prompt_ids(tokenizer, "Why?"))).startswith(opening + "Why?")

    def test_end_of_text_is_the_one_of_pretraining_before_eos(self, tokenizer: PreTrainedTokenizerBase) -> None:
        assert tokenizer.eos_token == "<|im_end|>"
        assert tokenizer.convert_ids_to_tokens(end_of_text(tokenizer)) == "<|endoftext|>"

    def test_end_of_text_is_eos_where_no_other_is_known(
        self, plain_tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("experiments.models.tokens.DOCUMENT_ENDS", ("<|none|>",))
        assert end_of_text(plain_tokenizer) == plain_tokenizer.eos_token_id
