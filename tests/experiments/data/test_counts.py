"""What is too long is counted before it is trained on."""

from __future__ import annotations

import itertools

import pytest

from experiments.common.errors import ConfigError
from experiments.data.counts import count, notes, too_long
from experiments.data.encoding import Encoded, Encoder, Overlong
from experiments.data.items import Item, Text
from experiments.models.tokens import answer_ids, prompt_ids
from tests.helpers.byte_level import byte_tokenizer

ITEMS = [Item("a?", "x" * 20), Item("b?", "y" * 40), Item("c?", "z" * 20)]
TOKENIZER = byte_tokenizer()
PROMPT, SHORT, LONG = (len(prompt_ids(TOKENIZER, "a?")), *(len(answer_ids(TOKENIZER, "a?", "x" * n)) for n in (20, 40)))


@pytest.mark.parametrize(
    ("overlong", "learned", "left_out"), [("drop", 2 * SHORT, PROMPT + LONG), ("cut", 3 * SHORT, LONG - SHORT)]
)
def test_counts(overlong: Overlong, learned: int, left_out: int) -> None:
    encoder = Encoder(TOKENIZER, "sft", PROMPT + SHORT, overlong=overlong)
    counts = count(ITEMS, encoder)
    rows = 3 if overlong == "cut" else 2
    assert (counts.examples, counts.too_long, counts.whole) == (3, 1, True)
    assert (counts.tokens, counts.learned, counts.left_out) == (rows * (PROMPT + SHORT), learned, left_out)
    share = left_out / (rows * (PROMPT + SHORT) + left_out)
    (line,) = too_long("own", counts, encoder)
    what = "are left out" if overlong == "drop" else "are cut to it, or left out if no reply begins before"
    assert line == (
        f"source own: 1 of 3 chats are longer than data.length={PROMPT + SHORT} and {what} ({share:.1%} of all tokens)"
    )


def test_the_first_of_many() -> None:
    encoder = Encoder(TOKENIZER, "sft", PROMPT + SHORT)
    counts = count(itertools.cycle(ITEMS), encoder, 5)
    assert (counts.examples, counts.too_long, counts.whole) == (5, 2, False)
    assert "2 of the first 5 chats are longer" in too_long("own", counts, encoder)[0]


def test_nothing_is_said_if_all_fits() -> None:
    encoder = Encoder(TOKENIZER, "sft", 512)
    counts = count([*ITEMS, Text("x" * 2000)], encoder)
    assert counts.left_out == 0
    assert too_long("own", counts, encoder) == []


def test_an_error_if_the_config_says_so() -> None:
    with pytest.raises(ConfigError, match=r"the question 'b\?' has .* set data.overlong to drop or cut"):
        count(ITEMS, Encoder(TOKENIZER, "sft", PROMPT + SHORT, overlong="error"))


def test_what_the_template_refuses_is_counted_with_the_first_reason() -> None:
    encoder = Encoder(TOKENIZER, "sft", 512)
    known = [encoder.encode(ITEMS[0]), Encoded([], refused="why"), Encoded([], refused="x")]
    counts = count(ITEMS, encoder, known=known)
    assert (counts.examples, counts.too_long, counts.refused) == (3, 0, ("why", "x"))
    assert notes("own", counts, encoder) == ["source own: 2 of 3 conversations are passed over (why)"]
    assert notes("own", count(ITEMS, encoder), encoder) == []
