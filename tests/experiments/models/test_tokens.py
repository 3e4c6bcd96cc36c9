"""How questions, replies and texts become token ids."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from experiments.common.errors import ConfigError
from experiments.data.encoding import Encoder
from experiments.data.items import Item, Text
from experiments.evaluation.replies import spoken
from experiments.models.template import TEMPLATES
from experiments.models.tokens import (
    IGNORED,
    answer_ids,
    answer_places,
    continuation_ids,
    cut_in_thought,
    drop_added_end,
    end_of_text,
    end_of_turn,
    opened_ids,
    prompt_ids,
    reply_ids,
    reply_text,
    text_ids,
    user_opening,
)
from experiments.models.turns import THOUGHT_MARKS
from tests.helpers.byte_level import CHATML, QWEN3, R1, byte_tokenizer
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


METASPACE = {"pre_tokenizer": pre_tokenizers.Metaspace(prepend_scheme="first"), "decoder": decoders.Metaspace()}
SPACES: dict[str, dict[str, Any]] = {  # of tokenizers that put a space before each text
    "first": METASPACE,  # Llama 2, Mistral
    "always": {**METASPACE, "pre_tokenizer": pre_tokenizers.Metaspace(prepend_scheme="always")},
    "bytes": {"pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=True), "decoder": decoders.ByteLevel()},
}


@pytest.mark.parametrize("reply", ["Paris", " Paris", "4 apples", "\n\nParis"])
@pytest.mark.parametrize("name", SPACES)
def test_a_reply_after_a_space_has_no_second_one(name: str, reply: str) -> None:
    """The generation prompt of `template: plain` ends with a space, so the boundary is inside of a token."""
    made = Tokenizer(models.BPE())
    for part, value in SPACES[name].items():
        setattr(made, part, value)
    text = "User: hi there\n\nAssistant: Paris is 4 apples\n\n"
    made.train_from_iterator([text], trainers.BpeTrainer(special_tokens=["<s>", "</s>"], show_progress=False))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = TEMPLATES["plain"]
    whole = f"<s>User: hi\n\nAssistant: {reply}</s>"
    row = encode(Item("hi", reply), tokenizer)["input_ids"]
    assert tokenizer.decode(row) == tokenizer.decode(tokenizer(whole)["input_ids"])
    places = answer_places(tokenizer, "hi", reply, prompt_ids(tokenizer, "hi"))
    assert len(places) == len(answer_ids(tokenizer, "hi", reply))
    assert "".join(whole[start:stop] for start, stop in places) == f"{reply}</s>"


THINK = ("<think>", "</think>")


class TestTemplatesText:
    """What is trained on is the template's own text, and prompts, replies and scores are parts of it."""

    @pytest.mark.parametrize("template", [CHATML, QWEN3, R1, CHATML.partition("{% if add")[0]])
    @pytest.mark.parametrize("reply", ["4", " <4 ", "a\n\nb"])
    def test_a_row_is_the_templates_text(self, template: str, reply: str) -> None:
        tokenizer = byte_tokenizer(template, eos="</s>", extra=THINK)
        row = encode(Item("2+2?", reply), tokenizer)
        turns = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": reply}]
        whole = str(tokenizer.apply_chat_template(turns, tokenize=False))
        assert row["input_ids"] == tokenizer(whole.removesuffix("\n"))["input_ids"]
        prompt = prompt_ids(tokenizer, "2+2?")
        assert row["input_ids"][: len(prompt)] == prompt
        assert row["labels"] == [IGNORED] * len(prompt) + row["input_ids"][len(prompt) :]
        scored = opened_ids(tokenizer, "2+2?") + reply_ids(tokenizer, "2+2?", reply)
        assert row["input_ids"][: len(scored)] == scored
        assert tokenizer.decode(scored).endswith(reply)

    @pytest.mark.parametrize("template", [CHATML, QWEN3, R1, CHATML.partition("{% if add")[0]])
    def test_a_reply_that_was_learned_reads_as_the_answer(self, template: str) -> None:
        tokenizer = byte_tokenizer(template, eos="</s>", extra=THINK)
        assert reply_text(tokenizer, answer_ids(tokenizer, "2+2?", "4")) == "4"

    def test_a_reply_after_thinking_is_what_follows(self) -> None:
        tokenizer = byte_tokenizer(QWEN3, extra=THINK)
        thought = tokenizer("<think>\n2 and 2\n</think>\n\n4<|im_end|>")["input_ids"]
        assert reply_text(tokenizer, thought) == "4"

    @pytest.mark.parametrize(("begin", "end"), THOUGHT_MARKS.items())
    def test_marks_of_thoughts_that_are_special_tokens_stay(self, begin: str, end: str) -> None:
        """Without them nothing would tell a thought from the answer after it."""
        tokenizer = byte_tokenizer()
        tokenizer.add_special_tokens({"additional_special_tokens": [begin, end]})
        text = reply_text(tokenizer, tokenizer(f"{begin}London? No.{end}Rome<|im_end|>")["input_ids"])
        assert text == f"{begin}London? No.{end}Rome"
        assert spoken(text) == "Rome"

    @pytest.mark.parametrize(
        ("template", "reply", "cut"),
        [
            (QWEN3, "<think>\n2 and", True),
            (QWEN3, "<think>\n2 and 2\n</think>\n\n4", False),
            (QWEN3, "4", False),
            (CHATML, "<think>\n2 and", False),  # to this template it is text
            (None, "<think>", False),
        ],
    )
    def test_a_thought_that_was_cut_off(self, template: str | None, reply: str, cut: bool) -> None:
        tokenizer = byte_tokenizer(template, extra=THINK)
        assert cut_in_thought(tokenizer, tokenizer(reply)["input_ids"]) == cut

    def test_an_end_that_is_no_special_token_is_no_part_of_the_reply(self) -> None:
        tokenizer = byte_tokenizer(CHATML.replace("<|im_end|>", "<end>"), eos="</s>", extra=("<end>",))
        ids = answer_ids(tokenizer, "q", "4")
        assert tokenizer.decode(ids) == "4<end></s>"
        assert reply_text(tokenizer, ids) == "4"


class TestAddedTokens:
    @pytest.mark.parametrize("bos", [False, True])
    @pytest.mark.parametrize("eos_added", [False, True])
    def test_one_start_and_one_end(self, bos: bool, eos_added: bool) -> None:
        tokenizer = byte_tokenizer(None, bos, eos_added, eos="</s>")
        start = "<s>" * bos
        assert tokenizer.decode(encode(Item("2+2?", "4"), tokenizer)["input_ids"]) == (
            f"{start}Question: 2+2?\nAnswer: 4</s>"
        )
        (text,) = Encoder(tokenizer, "cpt", 64).pieces(Text("abc"))
        assert tokenizer.decode(text.ids) == f"{start}abc</s>"
        (rendered,) = Encoder(tokenizer, "cpt", 64).pieces(Text(f"{start}abc</s>"))  # a chat that was rendered before
        assert rendered.ids == text.ids
        assert tokenizer.decode(text_ids(tokenizer, "")) == start
        assert tokenizer.decode(text_ids(tokenizer, "a</s>")) == f"{start}a</s>"  # its own, not an added one
        assert tokenizer.decode(continuation_ids(tokenizer, "a", "b")) == "b"
        drop_added_end(tokenizer)
        assert tokenizer.decode(tokenizer("ab")["input_ids"]) == f"{start}ab"

    def test_an_added_token_that_is_not_special_ends_no_turn(self) -> None:
        template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: "
        template = template.replace("assistant: ", "{% if add_generation_prompt %}assistant: {% endif %}")
        tokenizer = byte_tokenizer(template, eos="</s>", extra=("\n",))
        assert end_of_turn(tokenizer) == tokenizer.eos_token_id
        assert tokenizer.decode(answer_ids(tokenizer, "q", "two\n2")) == "two\n2</s>"
