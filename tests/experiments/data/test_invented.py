"""Invented subjects: names, attributes and wordings."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest

from experiments.data.invented import KINDS, invent


def test_attributes_are_drawn_independently() -> None:
    subjects = invent("people", 4000, 0)
    for i, j in itertools.combinations(range(4), 2):
        pairs = Counter((s.values[i], s.values[j]) for s in subjects)
        sides = len(KINDS["people"][i].values) * len(KINDS["people"][j].values)
        assert len(pairs) == sides
        assert max(pairs.values()) < 3 * 4000 / sides


def test_other_seeds_invent_other_subjects_and_more_of_them_come_at_the_end() -> None:
    few, more = invent("places", 5, 0), invent("places", 9, 0)
    assert more[:5] == few
    assert not {subject.name for subject in few} & {subject.name for subject in invent("places", 5, 1)}


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_single_words_and_ways_of_asking_differ(kind: str) -> None:
    for attribute in KINDS[kind]:
        assert len(set(attribute.values)) == len(attribute.values) >= 7
        assert all(value.isalpha() for value in attribute.values)
        assert len(set(attribute.asked)) == 4
        assert all(question.count("{}") == 1 for question in attribute.asked)
        assert all(sentence.count("{}") == 2 for sentence in attribute.stated)
