"""Measured questions in training data: by hand, against a plain restatement, and in good time."""

from __future__ import annotations

import random
import time

import pytest

from experiments.data.items import Example, Item, Text, chat
from experiments.data.overlap import CHUNK, Probe, overlaps, question_probe, words

LONG = "A farmer has twelve brown cows and sells three of them every single week until none are left"


def found(item: Item, *rows: Example) -> tuple[int, int]:
    """Whether the item is the same as in a row, or similar."""
    result = overlaps([question_probe("new", "t", item)], rows, "train")
    return (result[0].same, result[0].similar) if result else (0, 0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("What's 3+2, or x_1?", ["what", "s", "3", "+", "2", "or", "x_1"]),
        ("Gr\u00f6\u00dfe: \u201e3 \u00b7 2\u201c!", ["gr\u00f6sse", "3", "2"]),
        ("\u6771\u4eac\u306f?", ["\u6771", "\u4eac", "\u306f"]),
        ("a\x00b\tc-d\u2026e", ["a", "b", "c", "-", "d", "e"]),
        ("", []),
        ("<p>a <b>big</b>&nbsp;<a href='x.html'>cat</a>,<br/>x<y", ["a", "big", "cat", "x", "<", "y"]),
        ("_a_ __big__ snake_case _x", ["a", "big", "snake_case", "x"]),
        ("if a<b and c>d: List<int>", ["if", "a", "<", "b", "and", "c", ">", "d", "list", "<", "int", ">"]),
        ("a cap\u00adi\u200btal \ufeffcity", ["a", "capital", "city"]),  # nobody sees these
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected


@pytest.mark.parametrize(
    ("question", "answer", "row", "expected"),
    [
        ("What is 3 + 2?", "5", Item("what is 3+2", "6"), (1, 0)),
        ("What is 3 + 2?", "5", Item("What is 3 - 2?", "1"), (0, 0)),
        ("Who?", "me", Item("who", "x"), (1, 0)),
        ("Who?", "me", Text("who me who me"), (0, 0)),  # under four words: only the same question counts
        ("Capital of France?", "Paris", Text("Q: capital of France... Paris! Next."), (0, 1)),
        ("Capital of France?", "Paris", Text("the capital of France is Paris"), (0, 0)),
        ("Capital of France?", "Paris", Item("capital of", "France Paris"), (0, 1)),
        (LONG, "0", Text(LONG.upper()), (1, 0)),
        (LONG, "0", Text(f"<p>{LONG.replace('brown', '<b>brown</b>').replace('every', '_every_')}</p>"), (1, 0)),
        (LONG, "0", Text(f"Once: {LONG}. The end."), (0, 1)),
        (LONG, "0", Text(" ".join(LONG.split()[:13])), (0, 1)),  # 6 of 11 sequences
        (LONG, "0", Text(" ".join(LONG.split()[:12])), (0, 0)),  # 5 of 11
        (LONG, "0", Text(LONG.replace("cows", "sheep").replace("week", "month")), (0, 0)),
    ],
)
def test_the_same_and_similar(question: str, answer: str, row: Example, expected: tuple[int, int]) -> None:
    others = [Text("Something else with a good many words in it, all of them others"), Item("And this?", "no")]
    assert found(Item(question, answer), *others, row, *others) == expected


def turns(*contents: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": one} for i, one in enumerate(contents)]


@pytest.mark.parametrize(
    ("measured", "row", "expected"),
    [
        (Item(LONG, "0"), chat(turns("Hi", "Hello", LONG, "4")), (0, 1)),
        (Item(LONG, "0"), chat(turns("Hi", "Hello", "Say it", LONG)), (0, 1)),
        (chat(turns("Hi", "Hello", LONG, "4")), Item(LONG, "0"), (0, 1)),
        (chat(turns("Hi", "Hello", LONG, "4")), chat(turns("hi", "hello!", LONG.upper(), "5")), (1, 0)),
        (chat(turns("Hi", "Hello", LONG, "4")), Text(f"hi hello {LONG}"), (1, 0)),
        # roles and the names of JSON fields are no words of a conversation
        (Item("What is 4?", "0"), chat([{"role": "system", "content": "Be brief."}, *turns("what is 4", "4")]), (1, 0)),
        (
            chat([{"role": "system", "content": "Be rude."}, *turns("What is 4?", "0")]),
            chat([{"role": "system", "content": "Be brief."}, *turns("what is 4", "4")]),
            (1, 0),
        ),
        (chat(turns("a", "b", "c", "d")), chat(turns("e", "f", "g", "h")), (0, 0)),
        (chat(turns("Is it", "yes it", "so it", "is")), chat(turns("one", "two", "three", "four")), (0, 0)),
    ],
)
def test_conversations_are_compared_by_what_is_said(measured: Item, row: Example, expected: tuple[int, int]) -> None:
    assert found(measured, Text("Something else with a good many words in it"), row) == expected


def test_sequences_may_be_in_several_rows_but_not_across_two() -> None:
    first, second = " ".join(LONG.split()[:10]), " ".join(LONG.split()[6:])
    assert found(Item(LONG, "0"), Text(first), Text(second)) == (0, 1)
    assert found(Item(LONG, "0"), Text(" ".join(LONG.split()[:9])), Text(" ".join(LONG.split()[9:]))) == (0, 0)
    assert found(Item("Capital of France?", "Paris"), Text("capital of"), Text("France Paris")) == (0, 0)


def test_a_common_instruction_does_not_count() -> None:
    asked = "Please answer the following question with a single word and nothing else at all:"
    probes = [question_probe("new", "t", Item(f"{asked} topic{i} thing{i} part{i}?", "x")) for i in range(30)]
    rows = [Item(f"{asked} other{i} things?", "x") for i in range(50)]
    assert overlaps(probes, rows, "train") == []
    rows.append(Item(f"{asked} topic3 thing3 part3 and more?", "x"))
    (one,) = overlaps(probes, rows, "train")
    assert (one.items, one.same, one.similar) == (30, 0, 1)
    assert one.examples == [[f"{asked} topic3 thing3 part3?", f"{asked} topic3 thing3 part3 and more?\nx"]]


def test_each_task_has_its_counts_and_up_to_three_examples() -> None:
    probes = [question_probe("new", "sums", Item(f"What is {i} plus {i}?", "x")) for i in range(9)]
    probes += [Probe("kept", "capitals", "?", ("The capital of Peru is Lima", "Capital of Peru? Lima"))]
    rows: list[Example] = [Item(f"what is {i} plus {i}", "y") for i in range(5)]
    rows += [Text("Everybody knows that the capital of Peru is Lima.")] * 2
    sums, capitals = overlaps(probes, rows, "train")
    assert (sums.suite, sums.task, sums.source, sums.items, sums.same, sums.similar) == (
        "new",
        "sums",
        "train",
        9,
        5,
        0,
    )
    assert sums.examples == [[f"What is {i} plus {i}?", f"what is {i} plus {i}"] for i in range(3)]
    assert (capitals.task, capitals.same, capitals.similar) == ("capitals", 0, 1)


def by_hand(questions: list[str], rows: list[str]) -> tuple[int, int]:
    """The rule with sets of strings; questions of 8 words or more that share no sequence."""
    whole = {" ".join(words(row)) for row in rows}
    grams = {" ".join(w[i : i + 8]) for w in map(words, rows) for i in range(len(w) - 7)}
    same = similar = 0
    for text in map(words, questions):
        own = {" ".join(text[i : i + 8]) for i in range(len(text) - 7)}
        same += " ".join(text) in whole
        similar += " ".join(text) not in whole and len(own & grams) >= len(own) / 2
    return same, similar


def corpus(rows: int, rng: random.Random) -> list[str]:
    vocabulary = [f"w{i}" for i in range(2000)]
    return [" ".join(rng.choices(vocabulary, k=rng.randint(3, 30))) for _ in range(rows)]


@pytest.mark.parametrize("cores", [1, 2])
def test_it_equals_the_rule_by_hand_over_several_chunks(cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.data.overlap.CHUNK", 64)
    monkeypatch.setattr("experiments.data.overlap.cores", lambda: cores)
    rng = random.Random(0)
    rows = corpus(300, rng)
    questions = [q for q in corpus(60, rng) if len(q.split()) >= 8]
    for row in rng.sample([row for row in rows if len(row.split()) >= 12], 30):
        cut = row.split()[: rng.randint(8, len(row.split()))]
        questions.append(" ".join([*cut, *corpus(1, rng)[0].split()[: rng.randint(0, 12)]]).upper())
    questions += [row.upper() for row in rows if len(row.split()) >= 12][:5]
    (one,) = overlaps(
        [question_probe("new", "t", Item(q, "a")) for q in questions], [Text(row) for row in rows], "train"
    )
    assert (one.same, one.similar) == by_hand(questions, rows)
    assert 0 < one.same < one.similar < 30


def test_some_chunks_of_rows_take_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.data.overlap.cores", lambda: 1)  # the time of this process is that of all
    rows = [Item(row, "some answer") for row in corpus(4 * CHUNK + 1, random.Random(0))]
    probes = [question_probe("new", "t", Item(row.question, "a")) for row in rows[-200:]]
    start = time.process_time()
    (one,) = overlaps(probes, rows, "train")
    assert time.process_time() - start < 5  # .5 s when alone
    assert one.same > 190
