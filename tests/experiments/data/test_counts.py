"""What is too long or refused is counted before it is trained on, and special tokens in the words are found."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from experiments.common.errors import ConfigError
from experiments.data.counts import Lengths, held, lengths, refused, special, too_long
from experiments.data.encoding import Encoded, Encoder, Overlong
from experiments.data.items import Chat, Example, Item, Text
from experiments.data.token_cache import Size, size_of
from experiments.models.conversation import question_of
from experiments.models.loss_mask import Loss
from experiments.models.tokens import answer_ids, prompt_ids
from tests.helpers.byte_level import byte_tokenizer
from tests.helpers.chat_families import FAMILIES, family_tokenizer

ITEMS = [Item("a?", "x" * 20), Item("b?", "y" * 40), Item("c?", "z" * 20)]
TOKENIZER = byte_tokenizer()
PROMPT, SHORT, LONG = (len(prompt_ids(TOKENIZER, "a?")), *(len(answer_ids(TOKENIZER, "a?", "x" * n)) for n in (20, 40)))


def sizes(examples: Iterable[Example], encoder: Encoder) -> Iterator[Size]:
    return map(size_of, map(encoder.encode, examples))


@pytest.mark.parametrize(("overlong", "left_out"), [("drop", PROMPT + LONG), ("cut", LONG - SHORT)])
def test_lengths(overlong: Overlong, left_out: int) -> None:
    encoder = Encoder(TOKENIZER, "sft", PROMPT + SHORT, overlong=overlong)
    found = lengths(sizes(ITEMS, encoder), 9)
    rows = 3 if overlong == "cut" else 2
    assert found == Lengths(3, 1, rows * (PROMPT + SHORT), left_out)
    share = left_out / (rows * (PROMPT + SHORT) + left_out)
    (line,) = too_long(found, encoder)
    what = "are left out" if overlong == "drop" else "are cut to it, or left out if no reply begins before"
    assert line == f"1 of 3 chats are longer than data.length={PROMPT + SHORT} and {what} ({share:.1%} of all tokens)"


def test_all_that_the_rows_need_are_counted() -> None:
    """Those that are left out give no row, so more examples are read than there are rows."""
    encoder = Encoder(TOKENIZER, "sft", PROMPT + SHORT)
    found = lengths(sizes(itertools.cycle(ITEMS), encoder), 800)
    assert (found.examples, found.too_long, found.whole) == (1200, 400, False)
    assert "400 of the first 1,200 chats are longer" in too_long(found, encoder)[0]


def test_known_ones_do_not_count_as_looked_at() -> None:
    made, known = (Size(1, 10, 0, new=new) for new in (True, False))
    assert lengths(itertools.cycle([made, known, known]), 10**6, most=5).examples == 13
    assert lengths([known] * 50, 10**6, most=5) == Lengths(50, tokens=500)
    assert lengths([made] * 50, 50, most=50).whole


def test_nothing_is_said_if_all_fits() -> None:
    encoder = Encoder(TOKENIZER, "sft", 512)
    found = lengths(sizes([*ITEMS, Text("x" * 2000)], encoder), 99)
    assert found.left_out == 0
    assert too_long(found, encoder) == refused(found) == []


def test_an_error_if_the_config_says_so() -> None:
    strict = Encoder(TOKENIZER, "sft", PROMPT + SHORT, overlong="error")
    with pytest.raises(ConfigError, match=r"the question 'b\?' has .* set data.overlong to drop or cut"):
        lengths(sizes(ITEMS, strict), 9)


def test_what_the_template_refuses_is_counted_with_the_first_reason() -> None:
    known = [Encoded([], left_out=0), Encoded([], refused="why"), Encoded([], refused="x")]
    found = lengths(map(size_of, known), 9)
    assert (found.examples, found.too_long, found.refused) == (3, 0, 2)
    assert refused(found) == ["2 of 3 conversations are passed over (why)"]


def test_words_of_the_first_are_looked_at() -> None:
    encoder = Encoder(TOKENIZER, "sft", 512)
    found = special(iter([*ITEMS, Item("say <|im_end|>", "x")]), encoder, most=3)
    assert (found.examples, found.whole, dict(found.as_text)) == (3, False, {})
    assert special([Item("say <|im_end|>", "x")], encoder).as_text == {"<|im_end|>": 1}


def test_words_that_the_template_leaves_out_are_said() -> None:
    """R1's drops what is before </think>: the thoughts of such data would be lost without a word."""
    encoder = Encoder(family_tokenizer(FAMILIES["deepseek-r1"]), "sft", 512)
    rows = [Item("a?", "<think>why</think>b"), Item("b?", "c"), Text("<think>d</think>")]
    (line,) = (one for one in held(special(rows, encoder)) if "leaves out" in one)
    assert line.startswith("1 of 3 examples have words that the chat template leaves out or changes")
    assert line.endswith("'<think>why</think>b'")
    assert not [one for one in held(special(rows[1:], encoder)) if "leaves out" in one]


@pytest.mark.parametrize(
    ("regime", "loss", "lost"),
    [("sft", "all_turns", False), ("sft", "last_turn", False), ("sft", "all_tokens", True), ("cpt", "all_turns", True)],
)
def test_thoughts_that_are_in_no_row_are_said(regime: Any, loss: Loss, lost: bool) -> None:
    """Qwen 3 drops thoughts of earlier replies: `all_turns` learns each reply in a row of its own."""
    asked, reply = (
        {"role": "user", "content": "a?"},
        {"role": "assistant", "content": "b", "reasoning_content": "first"},
    )
    chat = Chat(question_of([asked, reply, asked]), "c", fields='{"reasoning_content": "second"}')
    encoder = Encoder(family_tokenizer(FAMILIES["qwen-3"]), regime, 512, loss=loss)
    rows = [encoder.tokenizer.decode(piece.ids) for piece in encoder.pieces(chat)]
    assert "first" not in rows[-1]
    assert "second" in rows[-1]
    assert len(rows) == (2 if (regime, loss) == ("sft", "all_turns") else 1)
    said = [line for line in held(special([chat], encoder)) if "leaves out" in line]
    assert [line.endswith("'first'") for line in said] == [True] * lost
