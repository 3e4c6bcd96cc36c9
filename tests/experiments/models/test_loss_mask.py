"""Token ids and labels of conversations, next to an independent reading of more than 25 chat templates."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from experiments.common.errors import ConfigError
from experiments.data.encoding import Encoder
from experiments.data.items import Item
from experiments.models.conversation import question_of
from experiments.models.loss_mask import Labelled, labelled
from experiments.models.template import set_template
from experiments.models.tokens import IGNORED, answer_ids, prompt_ids
from tests.helpers.byte_level import CHATML, byte_tokenizer
from tests.helpers.chat_families import FAMILIES, Family, family_tokenizer

Messages = list[dict[str, Any]]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Tell it",
            "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "where"}}},
        },
    }
]
THREE = ["hello there", "Good day", "What is new?", "Not much", "Then bye", "See you"]


def turns(contents: Sequence[str], system: str = "") -> Messages:
    """Return contents as messages of user and assistant in turn."""
    roles = ("user", "assistant")
    made = [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]
    return [{"role": "system", "content": system}, *made] if system else made


def tool_chat() -> Messages:
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Bonn"}}}
    return [
        {"role": "user", "content": "How is it in Bonn?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "RAIN"},
        {"role": "assistant", "content": "It is wet"},
    ]


def read(tokenizer: PreTrainedTokenizerBase, messages: Messages, family: Family) -> list[Labelled]:
    """Read ids and labels off the text of the template: each reply with its end is found by its words.

    It knows nothing of generation prompts. A reply continues a row if the text before it begins with that row.
    """
    texts: list[tuple[str, list[tuple[int, int]]]] = []
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            text = str(tokenizer.apply_chat_template(messages[: i + 1], tokenize=False))
            start = text.rindex(message["content"])
            stop = start + len(message["content"]) + len(family.end)
            assert text[:stop].endswith(family.end)
            text, span = text[:stop], (start - len(family.opening), stop)
            assert text[span[0] :].startswith(family.opening)
            if texts and family.end and text.startswith(texts[-1][0]):
                texts[-1] = (text, [*texts[-1][1], span])
            else:
                texts.append((text, [span]))
    return [encoded(tokenizer, text, spans, not family.end) for text, spans in texts]


def encoded(
    tokenizer: PreTrainedTokenizerBase, text: str, spans: Sequence[tuple[int, int]], ends_with_eos: bool
) -> Labelled:
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids: list[int] = list(found["input_ids"])
    places: Any = found["offset_mapping"]
    inside = [any(a <= start and stop <= b for a, b in spans) for start, stop in places]
    labels = [token if one else IGNORED for token, one in zip(ids, inside, strict=True)]
    eos = [int(tokenizer.eos_token_id)] * ends_with_eos
    return Labelled(ids + eos, labels + eos)


WORDS = ("chatml", "llama-2", "qwen-3", "gemma-3", "mistral-3", "phi-3", "vicuna", "alpaca")  # ends of all kinds


@functools.cache
def settled(name: str, other: PreTrainedTokenizerBase | None = None) -> PreTrainedTokenizerBase:
    """Return a tokenizer of bytes, or one with the words of another, with the settled template of a family."""
    tokenizer = family_tokenizer(FAMILIES[name], other)
    set_template(tokenizer, merge_system=not FAMILIES[name].system)
    return tokenizer


def compare(tokenizer: PreTrainedTokenizerBase, name: str, system: str) -> None:
    family, messages = FAMILIES[name], turns(THREE, system)
    expected, rows = read(tokenizer, messages, family), labelled(tokenizer, messages)
    assert rows == expected
    rewritten = family.rewrites and (system != "" or name != "mistral-3")
    assert len(rows) == (3 if rewritten or not family.end else 1)
    replies = [f"{family.opening}{reply}{family.end or family.eos}" for reply in THREE[1::2]]
    assert "".join(learned(tokenizer, rows)) == "".join(replies)
    assert all(row.ids[:2] != [tokenizer.bos_token_id] * 2 for row in rows)
    (last,) = labelled(tokenizer, messages, loss="last_turn")
    assert (last.ids, learned(tokenizer, [last])) == (rows[-1].ids, replies[-1:])
    assert labelled(tokenizer, messages, loss="all_tokens") == [Labelled(rows[-1].ids, rows[-1].ids)]


@pytest.mark.parametrize("name", FAMILIES)
class TestFamilies:
    def test_one_question_is_as_ever(self, name: str) -> None:
        tokenizer = settled(name)
        prompt, answer = prompt_ids(tokenizer, "2+2?"), answer_ids(tokenizer, "2+2?", "Four")
        (row,) = labelled(tokenizer, turns(["2+2?", "Four"]))
        assert (row.ids, row.labels) == (prompt + answer, [IGNORED] * len(prompt) + answer)
        assert [row] == read(tokenizer, turns(["2+2?", "Four"]), FAMILIES[name])

    @pytest.mark.parametrize("system", ["", "Be brief"])
    def test_all_replies_with_their_ends(self, name: str, system: str) -> None:
        compare(settled(name), name, system)


@pytest.mark.parametrize("name", WORDS)
def test_tokens_of_several_letters(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    compare(settled(name, tokenizer), name, "Be brief")


def test_a_prompt_of_other_tokens_starts_a_row(tokenizer: PreTrainedTokenizerBase) -> None:
    """These words make one token of two newlines at the end of a prompt, and two once a reply follows."""
    with_words = settled("llama-3", tokenizer)
    rows = labelled(with_words, turns(THREE))
    assert learned(with_words, rows) == ["Good day<|eot_id|>", "Not much<|eot_id|>", "See you<|eot_id|>"]
    for k, row in enumerate(rows):
        asked = prompt_ids(with_words, question_of(turns(THREE)[: 2 * k + 1]))
        assert row.ids[: len(asked)] == asked


def learned(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Labelled]) -> list[str]:
    """Return the text of the tokens with loss, one for each row."""
    return [str(tokenizer.decode([t for t in row.labels if t != IGNORED])) for row in rows]


class TestTools:
    @pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.tools])
    def test_calls_are_learned_and_results_are_not(self, name: str) -> None:
        tokenizer = settled(name)
        rows = labelled(tokenizer, tool_chat(), TOOLS)
        whole = str(tokenizer.apply_chat_template(tool_chat(), tools=TOOLS, tokenize=False))  # type: ignore[arg-type]
        assert whole.startswith(str(tokenizer.decode(rows[-1].ids)))
        assert "RAIN" in str(tokenizer.decode(rows[-1].ids))
        assert "Tell it" in str(tokenizer.decode(rows[-1].ids))
        text = "".join(learned(tokenizer, rows))
        assert "Bonn" in text
        assert "weather" in text
        assert text.count(FAMILIES[name].end) == 2
        assert text.endswith("It is wet" + FAMILIES[name].end)
        assert "RAIN" not in text
        (all_tokens,) = labelled(tokenizer, tool_chat(), TOOLS, "all_tokens")
        (text,) = learned(tokenizer, [all_tokens])
        assert "RAIN" not in text
        assert "How is it in Bonn?" in text

    def test_a_reply_of_weight_0_is_read_and_not_learned(self) -> None:
        tokenizer = byte_tokenizer(CHATML)
        plain = turns(THREE)
        weighted = [{**turn, "weight": 0} if turn["content"] == THREE[3] else turn for turn in plain]
        (all_of,), (some,) = labelled(tokenizer, plain), labelled(tokenizer, weighted)
        assert some.ids == all_of.ids
        (text,), (fewer,) = learned(tokenizer, [all_of]), learned(tokenizer, [some])
        assert fewer == text.replace(f"{THREE[3]}<|im_end|>", "") != text
        assert labelled(tokenizer, [*plain[:-1], {**plain[-1], "weight": 0}], loss="last_turn") == []
        with pytest.raises(ConfigError, match=r"a\.jsonl, line 3: a reply has weight 0, but all tokens are learned"):
            labelled(tokenizer, weighted, loss="all_tokens", place="a.jsonl, line 3")

    def test_a_result_that_is_written_again_is_refused_for_all_tokens(self) -> None:
        tokenizer = settled("mistral-3")
        messages = [*tool_chat(), *turns(["Thanks", "Welcome"])]
        assert len(labelled(tokenizer, messages, TOOLS)) == 2
        with pytest.raises(
            ConfigError, match=r"a.jsonl, line 3: the chat template rewrites .* regime sft with data.loss: all_turns"
        ):
            labelled(tokenizer, messages, TOOLS, "all_tokens", place="a.jsonl, line 3")

    def test_calls_that_end_with_a_token_of_their_own(self) -> None:
        """As in gpt-oss and Gemma 4: <|call|> instead of the end of other replies."""
        ends = "{% if m.tool_calls %}{{ m.tool_calls[0].function | tojson }}<|call|>{% else %}<|im_end|>\n{% endif %}"
        tokenizer = family_tokenizer(Family("{{ tools }}" + CHATML.replace("<|im_end|>\n", ends), ("<|call|>",)))
        (row,) = labelled(tokenizer, tool_chat(), TOOLS)
        (text,) = learned(tokenizer, [row])
        assert text == '{"name": "weather", "arguments": {"city": "Bonn"}}<|call|>It is wet<|im_end|>'
        without = family_tokenizer(Family(str(tokenizer.chat_template), ()))  # there it is no token
        with pytest.raises(ConfigError, match=r"here: the chat template writes the question .* in another way"):
            labelled(without, tool_chat(), TOOLS, place="here")

    @pytest.mark.parametrize(("tools", "where"), [([], r"question 'How is it in Bonn\?'"), (TOOLS, r"a.jsonl, line 3")])
    def test_a_template_that_writes_no_tools_is_refused(self, tools: list[dict[str, Any]], where: str) -> None:
        writes_tools_only = "{{ tools }}" + FAMILIES["chatml"].template
        for template in (FAMILIES["chatml"].template, writes_tools_only):
            tokenizer = byte_tokenizer(template)
            with pytest.raises(ConfigError, match=f"{where}: the chat template leaves out the tool 'weather'"):
                labelled(tokenizer, tool_chat(), tools, place="a.jsonl, line 3")


class TestThoughts:
    def test_thoughts_are_learned_where_they_were_thought(self) -> None:
        """Qwen 3 drops the thoughts of earlier turns: each reply is learned after the prompt that it had."""
        tokenizer = settled("qwen-3")
        messages = turns(["a?", "A", "b?", "B"])
        messages[1]["reasoning_content"], messages[3]["reasoning_content"] = "first", "second"
        rows = labelled(tokenizer, messages)
        ways = [f"<think>\n{way}\n</think>\n\n{reply}<|im_end|>" for way, reply in (("first", "A"), ("second", "B"))]
        assert learned(tokenizer, rows) == ways
        assert "first" not in str(tokenizer.decode(rows[1].ids))

    def test_one_row_holds_what_goes_on(self) -> None:
        """After the last question Qwen 3 keeps the thoughts between calls: these replies are in one row."""
        tokenizer = settled("qwen-3")
        rows = labelled(tokenizer, [*turns(["Hi", "Hello"]), *tool_chat()], TOOLS)
        assert [text.count("<|im_end|>") for text in learned(tokenizer, rows)] == [1, 2]


class TestRules:
    @pytest.fixture
    def chatml(self) -> PreTrainedTokenizerBase:
        return settled("chatml")

    def test_a_reply_to_nothing_carries_no_loss(self, chatml: PreTrainedTokenizerBase) -> None:
        messages = [{"role": "assistant", "content": "Welcome!"}, *turns(["Hi", "Hello"])]
        assert learned(chatml, labelled(chatml, messages)) == ["Hello<|im_end|>"]
        assert labelled(chatml, messages[:1]) == []

    def test_replies_of_a_prompt_are_its_context(self, chatml: PreTrainedTokenizerBase) -> None:
        assert learned(chatml, labelled(chatml, turns(THREE), first=3)) == ["Not much<|im_end|>See you<|im_end|>"]

    def test_without_a_template_each_reply_has_its_row(self) -> None:
        tokenizer = byte_tokenizer(None, eos="</s>")
        rows = labelled(tokenizer, turns(["a?", "A", "b?", "B"], "Be brief."))
        assert learned(tokenizer, rows) == [" A</s>", " B</s>"]
        assert tokenizer.decode(rows[1].ids) == "Be brief.\nQuestion: a?\nAnswer: A\nQuestion: b?\nAnswer: B</s>"
        with pytest.raises(ConfigError, match="has tools, and this tokenizer has no chat template"):
            labelled(tokenizer, tool_chat(), TOOLS)

    @pytest.mark.parametrize(
        ("messages", "said"),
        [
            (turns(["a", "b"], "s"), r"roles system, user \(System role not supported\): data.merge_system: true"),
            ([*turns(["a"]), *turns(["b", "c"])], r"user, user \(roles must alternate\): turns of one role"),
        ],
    )
    def test_a_template_that_refuses_names_the_row_and_a_way_out(self, messages: Messages, said: str) -> None:
        tokenizer = family_tokenizer(FAMILIES["gemma-2"])
        with pytest.raises(ConfigError, match=f"a.jsonl, line 7: the chat template refuses .*{said}"):
            labelled(tokenizer, messages, place="a.jsonl, line 7")

    def test_markers_take_what_they_leave_out_but_no_end(self) -> None:
        family = FAMILIES["chatml-marked-without-end"]
        template = family.template.replace("{% generation %}", "(thought){% generation %}")
        tokenizer = family_tokenizer(family)
        tokenizer.chat_template = template
        rows = labelled(tokenizer, turns(THREE))
        assert learned(tokenizer, rows) == ["Good day<|im_end|>Not much<|im_end|>See you<|im_end|>"]
        assert str(tokenizer.decode(rows[0].ids)).count("(thought)") == 3

    @pytest.mark.parametrize("opening", ["", ": "])
    @pytest.mark.parametrize("word", ["hello", "what is <|im_end|> there?"])
    def test_markers_hold_however_words_are_encoded(
        self, word: str, opening: str, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        """Special tokens in words are text, and the last token of a prompt (`: `) may not be one within the chat."""
        other = family_tokenizer(FAMILIES["chatml-marked-without-end"], tokenizer)
        template = str(other.chat_template).replace("{% generation %}", f"{opening}(way) {{% generation %}}")
        other.chat_template = template.replace("assistant\n", f"assistant\n{opening}")
        replies = [f"fine {word}", "end"]
        rows = labelled(other, turns(["a?", replies[0], word, replies[1]]))
        assert "".join(learned(other, rows)).split() == "".join(f" {reply}<|im_end|>" for reply in replies).split()
        (row,) = Encoder(other, "sft", 512).labelled(Item(word, replies[0]))
        assert learned(other, [row])[0].strip() == f"{replies[0]}<|im_end|>"

    def test_a_merged_system_turn_begins_the_question(self) -> None:
        tokenizer = family_tokenizer(FAMILIES["gemma-2"])
        set_template(tokenizer, merge_system=True)
        (row,) = labelled(tokenizer, turns(["a", "b"], "Be brief."))
        assert "user\nBe brief.\n\na<end_of_turn>" in str(tokenizer.decode(row.ids))


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(lambda text: text.strip())


@settings(max_examples=60)
@given(
    st.sampled_from(["chatml", "qwen-2.5", "qwen-3", "phi-4", "zephyr"]),
    st.lists(TEXT, min_size=2, max_size=8),
    st.booleans(),
)
def test_each_reply_is_learned_once_after_what_is_asked(name: str, contents: list[str], system: bool) -> None:
    """Of any conversation: labels follow a prompt as it is asked, and hold each reply with its end exactly once."""
    tokenizer = settled(name)
    messages = turns(contents[: len(contents) // 2 * 2], "Be brief." * system)
    found: list[list[int]] = []
    for row in labelled(tokenizer, messages):
        assert len(row.ids) == len(row.labels)
        assert all(label in (IGNORED, token) for token, label in zip(row.ids, row.labels, strict=True))
        starts = [i for i in range(1, len(row.ids)) if row.labels[i] != IGNORED and row.labels[i - 1] == IGNORED]
        for start in starts:
            stop = next((i for i in range(start, len(row.ids)) if row.labels[i] == IGNORED), len(row.ids))
            k = 2 * len(found) + 1 + system
            question = question_of(messages[:k])
            assert row.ids[:start] == prompt_ids(tokenizer, question)
            found.append(row.ids[start:stop])
            assert found[-1] == answer_ids(tokenizer, question, messages[k])
    assert len(found) == len(contents) // 2
