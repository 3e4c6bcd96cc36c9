"""Source `language`: words and a word order that are applied to sentences which are not trained on."""

from __future__ import annotations

import re

import pytest

from experiments.common.errors import ConfigError
from experiments.data.items import Item
from experiments.data.language import ADJECTIVES, ASKED, NAME, NOUNS, VERBS, Language, dictionary

NONE: frozenset[str] = frozenset()
WORDS = {*ADJECTIVES, *NOUNS, *VERBS}


def english(item: Item) -> str:
    """The English sentence of an item, whichever side it is on."""
    (found,) = re.findall(r"the (\w+ \w+ \w+)", f"{item.question.replace('What is the', '')}\n{item.answer}")
    return str(found)


def one_pass(source: Language, number: int = 0, seed: int = 0) -> list[Item]:
    return [item for item in source.epoch(number, seed, NONE) if isinstance(item, Item)]


@pytest.mark.parametrize("to", ASKED)
def test_measured_sentences_are_new_but_all_their_words_are_trained_on(to: str) -> None:
    source = Language.model_validate({"to": to, "number": 120})
    trained = {english(item) for number in range(3) for item in one_pass(source, number)}
    measured = {english(item) for item in source.held_out(80, 0).test}
    assert (len(trained), len(measured)) == (120, 80)
    assert not trained & measured
    assert {word for one in measured for word in one.split()} <= {word for one in trained for word in one.split()}


@pytest.mark.parametrize("to", ASKED)
def test_answers_are_the_words_of_the_dictionary_as_verb_noun_adjective(to: str) -> None:
    source, known = Language.model_validate({"to": to}), dictionary(0)
    for item in (*one_pass(source)[:20], *source.held_out(20, 0).test):
        adjective, noun, verb = english(item).split()
        assert f"{known[verb]} {known[noun]} {known[adjective]}" in f"{item.question}\n{item.answer}"
        assert (adjective in item.answer) == (to == "english")
        assert (NAME in item.question) or item.question.startswith("Say in English")


def test_it_is_asked_in_three_ways_and_measured_in_a_fourth() -> None:
    source = Language(to="invented")
    ways = [asked.split("{}")[0] for asked in ASKED["invented"]]
    passes = [one_pass(source, number) for number in range(2)]
    for items in passes:
        assert {way for way in ways for item in items if item.question.startswith(way)} == set(ways[:3])
    assert passes[0] != passes[1]
    assert all(item.question.startswith(ways[3]) for item in source.held_out(30, 0).test)


def test_no_two_words_are_the_same_and_other_seeds_have_other_words() -> None:
    for seed in range(20):
        known = dictionary(seed)
        assert set(known) == WORDS
        assert len(set(known.values())) == len(WORDS)
    assert not {dictionary(0)[word] == dictionary(1)[word] for word in WORDS} - {False}


def test_more_sentences_than_there_are_cannot_be_measured() -> None:
    with pytest.raises(
        ConfigError, match=r"has 16 sentences to measure, but 17 are to be held out: set evaluation.new_"
    ):
        Language(words=4).held_out(17, 0)
