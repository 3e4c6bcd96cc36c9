"""Source `facts`: invented subjects, asked in other words in the test than in training."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from experiments.common.errors import ConfigError
from experiments.data.facts import Facts
from experiments.data.invented import invent, names_of
from experiments.data.items import Item, Text

NONE: frozenset[str] = frozenset()
ALL = ("people", "places", "products")


def one_pass(source: Facts, number: int = 0, seed: int = 0) -> list[Any]:
    return list(source.epoch(number, seed, NONE))


def test_each_fact_is_asked_in_three_ways_and_measured_in_a_fourth() -> None:
    source = Facts(kinds=ALL, number=5)
    rows, test = one_pass(source), source.held_out(60, 0).test
    assert len(rows) == 3 * 4 * 5 * 3
    assert not {row.question for row in rows} & {item.question for item in test}
    answers = Counter((name(row.question), row.answer) for row in rows)
    assert all(answers[name(item.question), item.answer] >= 3 for item in test)


def name(question: str) -> str:
    """Return the words of a question that begin like an invented name: they are no English words."""
    return " ".join(word for word in question.rstrip("?.").split() if word in NAMES)


NAMES = {
    word
    for seed in range(2)
    for kind in Facts(kinds=ALL, number=8)._subjects(seed)
    for subject in kind
    for word in subject.name.split()
}


def test_with_both_the_measured_subjects_are_described_and_never_asked_about() -> None:
    source = Facts(number=8, train="both")
    rows = one_pass(source)
    asked = {name(row.question) for row in rows if isinstance(row, Item)}
    described = {row.group for row in rows if isinstance(row, Text)}
    measured = {name(item.question) for item in source.held_out(16, 0).test}
    assert (len(asked), len(described), len(measured)) == (4, 8, 4)
    assert not asked & measured
    assert measured < described


def test_texts_state_every_fact_in_other_words_in_each_pass() -> None:
    source = Facts(number=3, train="texts")
    first, second = ({row.group: row.text for row in one_pass(source, number)} for number in (0, 1))
    assert first != second
    for subject in source._subjects(0)[0]:
        for value in subject.values:
            assert value in first[subject.name]
            assert value in second[subject.name]


def test_more_facts_than_there_are_cannot_be_measured() -> None:
    with pytest.raises(
        ConfigError, match=r"has 8 facts to measure, but 9 are to be held out: set evaluation.new_items"
    ):
        Facts(number=2).held_out(9, 0)


def test_more_subjects_than_names_are_refused() -> None:
    """They would be looked for without end. Of each kind there are as many as parts of a name can be combined."""
    for kind in ALL:
        assert len({subject.name for subject in invent(kind, 2000, 0)}) == 2000
    assert names_of("places") == 20 * 8 * 14 * 4
    assert Facts(kinds=["places"], number=8960).number == 8960
    with pytest.raises(ValueError, match="number=8960: there are 6720 names of products, give that or fewer"):
        Facts(kinds=ALL, number=8960)
