"""Instructions: each check takes a good reply and refuses bad ones."""

from __future__ import annotations

import json
import random
import re
import time

import pytest

from experiments.common.errors import ConfigError
from experiments.config import ExperimentConfig
from experiments.data.spelling import straight
from experiments.evaluation.suites.instructions import KINDS, Instruction, instructions, language_of
from experiments.models.base import load_base
from tests.helpers.option_scores import FP32
from tests.helpers.small_run import draw_suites, small_config

GERMAN = "Der Zug ist sehr lang und die Fahrt mit ihm ist nicht teuer."
FRENCH = "La mer est belle et les bateaux sont dans le port."
SPANISH = "El tren es rápido y los viajes en el tren son baratos."


def good(item: Instruction) -> str:
    """A reply that does what the prompt says, read out of the prompt."""
    count = int(found[0]) if (found := re.findall(r"exactly (\d)", item.prompt)) else 0
    if item.kind == "language":
        return {"French": FRENCH, "Spanish": SPANISH, "German": GERMAN}[re.findall(r"in (\w+)\.", item.prompt)[0]]
    quoted = re.findall(r'"(.*?)"', item.prompt)
    if item.kind in ("repetition", "opening", "letter", "keyword"):
        word = quoted[0]
        return word if item.kind == "repetition" else f"{word} it is deep."
    return {
        "sentences": " ".join(["It costs 2.50 now."] * count),
        "json": json.dumps(dict.fromkeys(re.findall(r'"(\w+)"', item.prompt), "x")),
        "numbered list": "\n".join(f"{i + 1}. word" for i in range(count)),
        "question": "Is the sea deep?",
        "code block": 'Here:\n```python\nprint("the sea")\n```',
        "no comma": "The sea is deep.",
    }[item.kind]


BAD = {
    "sentences": ["no end", "One. Two. Three.", "One. Two. And a third that was cut", "One. And a second that was"],
    "json": ["", "{", "[]", '{"name": 1}', 'Here it is: {"name": 1, "age": 2}'],
    "numbered list": ["", "1. one", "- one\n- two\n- three", "2. two\n1. one\n3. three"],
    "language": ["", "The sea is deep and the ships are on it.", "Mer."],
    "repetition": ["", "I like", "I like it. I like it."],
    "opening": ["", "In short", "In short,", "To begin with,", "Everyone knows that", "It is, in short, deep."],
    "letter": ["", "Dear", "Hello Anna,", "Subject: a letter\n\nDear Anna,"],
    "keyword": ["", "The sea is deep.", "oftentimes mornings nevertheless"],
    "question": ["", "The sea is deep.", "Is it deep? Yes."],
    "code block": ["", 'print("the sea")', '```python\nprint("the sea")', "```\nthe sea\n```"],
    "no comma": ["", "The sea, the sky."],
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_good_reply_passes_and_bad_ones_do_not(kind: str) -> None:
    items = [item for seed in range(3) for item in instructions(16 * len(KINDS), seed) if item.kind == kind]
    assert len(items) == 48
    for item in items:
        assert item.check(good(item)), item.prompt
        for reply in BAD[kind]:
            assert not item.check(reply), (item.prompt, reply)


def dressed(item: Instruction) -> list[str]:
    """Good replies in quotes, in bold, with a title before a name, or in another form of code."""
    said, around = good(item), ("**{}**", "*{}*", "'{}'", '"{}"', "\u201c{}\u201d", '**"{}"**')
    quoted = re.findall(r'"(.*?)"', item.prompt)
    count = int(found[0]) if (found := re.findall(r"exactly (\d)", item.prompt)) else 0
    more = {
        "sentences": [form.format(said) for form in around]
        + [
            " ".join([text] * count)
            for text in ("Dr. Lee came.", "I like it, e.g. now.", "It is deep\u2026", '"It is."')
        ],
        "json": [form.format(said) for form in ("```json\n{}\n```", "```JSON\n{}\n```", "~~~json\n{}\n~~~", "`{}`")],
        "numbered list": [
            "\n".join(form.format(i + 1) for i in range(count))
            for form in ("**{}.** word", "**{}. word**", "{}\\. word", "({}) word", "{}) word")
        ],
        "letter": [f"**{quoted[0]}**\nit is.", f'"{quoted[0]} it is."'] if quoted else [],
        "opening": [f"**{quoted[0]}** it is.", f'"{quoted[0]}" it is.'] if quoted else [],
        "code block": [said.replace("```", "~~~")],
    }
    return more.get(item.kind, [form.format(said) for form in around])


@pytest.mark.parametrize("kind", KINDS)
def test_quotes_and_marks_around_a_good_reply_are_passed_over(kind: str) -> None:
    """A training that changes only the dress of replies would look like one that forgot instructions."""
    for item in (item for item in instructions(16 * len(KINDS), 0) if item.kind == kind):
        for reply in dressed(item):
            assert item.check(straight(reply)), (item.prompt, reply)
        for reply in BAD[kind]:
            assert not item.check(straight(f"**{reply}**")), (item.prompt, reply)


@pytest.mark.parametrize(
    ("text", "language"),
    [
        (FRENCH, "French"),
        (SPANISH, "Spanish"),
        (GERMAN, "German"),
        ("The sea is deep and the ships are on it.", "English"),
        ("la la", None),
        ("", None),
    ],
)
def test_language(text: str, language: str | None) -> None:
    assert language_of(text) == language


@pytest.mark.parametrize(
    "part",
    ["[", "{", ".", "1", " ", "\n", "*", ".'", "\u2026", "A. ", "(", "\u2028", "\n ", "1.\n", "```", '"', "é", "-"],
)
def test_hostile_replies_are_wrong_at_once(part: str) -> None:
    """No check takes quadratic time: each would need minutes here."""
    start = time.process_time()
    for item in instructions(len(KINDS), 0):
        right = [item.check(reply) for reply in (part * 200_000, f"x{part * 200_000}x")]
        assert not any(right) or item.kind not in ("json", "numbered list")
    assert time.process_time() - start < 5


def test_same_seed_same_items_and_more_items_change_none() -> None:
    def prompts(count: int, seed: int) -> list[str]:
        return [item.prompt for item in instructions(count, seed)]

    assert prompts(20, 0) == prompts(60, 0)[:20]
    assert prompts(20, 0) != prompts(20, 1)
    assert len(set(prompts(176, 0))) == 176
    assert {item.kind for item in instructions(11, 0)} == set(KINDS)


def test_too_many() -> None:
    with pytest.raises(ConfigError, match=r"instructions\.items=177, but there are only 176 instructions"):
        instructions(177, 0)


def test_replies_are_checked_and_recorded(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = load_base(base)
    evaluation = draw_suites(_config(base), tokenizer).prepare(model, FP32)
    items = instructions(10, 0)
    replies = [f" {good(item)}\n" if i % 2 else "" for i, item in enumerate(items)]
    monkeypatch.setattr("experiments.evaluation.replies.generate_replies", lambda *args, **kwargs: replies)
    records = evaluation.evaluate(model, FP32, progress=False)
    assert [r.correct for r in records] == [0, 1] * 5
    assert [r.parsed for r in records] == [False, True] * 5
    assert [(r.task, r.item, r.reply) for r in records] == [
        (i.kind, i.id, t) for i, t in zip(items, replies, strict=True)
    ]
    assert {(r.suite, r.form) for r in records} == {("instructions", "generate")}


def _config(base: str) -> ExperimentConfig:
    return small_config(base, evaluation={"suites": {"instructions": {"items": 10}}})


def test_orders_do_not_depend_on_the_global_random_state() -> None:
    random.seed(1)
    first = [item.prompt for item in instructions(30, 0)]
    random.seed(2)
    assert [item.prompt for item in instructions(30, 0)] == first
