"""Kept tasks: facts, options, seeds."""

from __future__ import annotations

import collections

import pytest

from experiments.evaluation.probes import PROBES, kept_items
from experiments.section import ConfigError


class TestProbes:
    @pytest.mark.parametrize("task", PROBES)
    def test_every_question_can_be_asked(self, task: str) -> None:
        questions = PROBES[task]()
        assert len(questions) >= 100
        assert len({q.id for q in questions}) == len(questions)
        for question in questions:
            assert len(set(question.wrong)) >= 3
            assert question.right not in question.wrong

    def test_four_distinct_options_with_the_right_one_marked(self) -> None:
        right = {(task, q.id): q.right for task, builder in PROBES.items() for q in builder()}
        for probe in kept_items(100, seed=3):
            assert len(set(probe.options)) == 4
            assert probe.options[probe.answer] == right[probe.task, probe.id]

    def test_same_seed_same_probes_and_more_items_change_none(self) -> None:
        few, many = kept_items(10, seed=0), kept_items(50, seed=0)
        assert few == kept_items(10, seed=0) != kept_items(10, seed=1)
        assert set(few) < set(many)

    def test_the_right_option_stands_anywhere(self) -> None:
        """Over 20 seeds and 160 probes each place has 1/4; 5 standard deviations are 0.04."""
        places = collections.Counter(p.answer for seed in range(20) for p in kept_items(40, seed))
        total = places.total()
        assert total == 20 * 160
        assert all(abs(places[i] / total - 0.25) < 0.04 for i in range(4))

    def test_known_facts(self) -> None:
        found = {(p.task, p.id): p.options[p.answer] for p in kept_items(100, seed=0)}
        assert found["capitals", "France"] == "Paris"
        assert found["continents", "Kenya"] == "Africa"
        assert found["past tense", "go"] == "went"
        assert found["plurals", "mouse"] == "mice"

    def test_nothing_gives_the_answer_away(self) -> None:
        for probe in kept_items(100, seed=0):
            if probe.task in ("capitals", "continents"):
                answer = probe.options[probe.answer].lower()
                assert not set(answer.split()) & set(probe.id.lower().split()), probe

    def test_articles(self) -> None:
        stems = {q.id: q.plain for q in PROBES["capitals"]()}
        assert stems["The Netherlands"] == "The capital of the Netherlands is"
        assert stems["Philippines"] == "The capital of the Philippines is"
        assert stems["France"] == "The capital of France is"

    def test_too_many_says_how_many_there_are(self) -> None:
        with pytest.raises(ConfigError, match=r"kept_items=1000, but the kept task 'capitals' has only \d+ items"):
            kept_items(1000, seed=0)
