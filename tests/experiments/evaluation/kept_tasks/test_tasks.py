"""Kept tasks: facts, options, seeds."""

from __future__ import annotations

import collections
import dataclasses

import pytest

from experiments.common.errors import ConfigError
from experiments.evaluation.kept_tasks.tasks import DEFAULT_TASKS, KEPT_TASKS, draw_questions, reworded
from experiments.evaluation.kept_tasks.words import NOUNS, plurals

ALL = tuple(KEPT_TASKS)
FACTS = {
    "capitals": {"France": "Paris", "Japan": "Tokyo", "Kenya": "Nairobi", "Peru": "Lima", "Canada": "Ottawa"},
    "continents": {"Kenya": "Africa", "Nepal": "Asia", "Brazil": "South America", "Cuba": "North America"},
    "currencies": {"Japan": "yen", "China": "yuan", "Poland": "zloty", "Germany": "euro", "Canada": "dollar"},
    "past tense": {"go": "went", "buy": "bought", "stop": "stopped", "try": "tried", "lead": "led", "sing": "sang"},
    "plurals": {"mouse": "mice", "city": "cities", "knife": "knives", "box": "boxes", "crisis": "crises"},
    "agreement": {
        "The author near the teachers": ("is", "was", "has", "needs"),
        "The keys that we saw with the letter": ("are", "were", "have", "need"),
    },
    "reading": {
        "Robert bought a ring in Berlin, and Clara bought a camera in Chicago. Clara went shopping in": "Chicago",
        "Oscar bought a clock in Paris, and Emma bought a guitar in Chicago. Emma is the owner of a new": "guitar",
    },
    "sequences": {"6, 11, 16, 21, 26": "31", "8, 16, 24, 32, 40": "48"},
    "categories": {"Of the words finger, tiger, drill and bicycle, the one that is a tool is": "drill"},
}

WORDINGS = {  # plain and chat, then both in other words
    ("capitals", "Philippines"): (
        "The capital of the Philippines is",
        "What is the capital of the Philippines?",
        "In the Philippines, the capital city is",
        "Which city is the capital of the Philippines?",
    ),
    ("continents", "The Netherlands"): (
        "The Netherlands is a country on the continent of",
        "On which continent is the Netherlands?",
        "The continent on which the Netherlands lies is",
        "Which continent does the Netherlands belong to?",
    ),
    ("currencies", "Japan"): (
        "The currency of Japan is the",
        "What is the currency of Japan?",
        "In Japan, the currency in use is the",
        "Which currency is used in Japan?",
    ),
    ("past tense", "go"): (
        'The past tense of the verb "go" is',
        "Every day they go. What did they do last week?",
        'The past tense form of "go" is',
        "Today they go. What did they do yesterday?",
    ),
    ("plurals", "mouse"): (
        'The plural of the noun "mouse" is',
        'What is the plural of the noun "mouse"?',
        'The plural form of "mouse" is',
        'Which form does the noun "mouse" take in the plural?',
    ),
    ("reading", "Robert bought a ring in Berlin, and Clara bought a camera in Chicago. Clara went shopping in"): (
        "Robert bought a ring in Berlin, and Clara bought a camera in Chicago. Clara went shopping in",
        "Robert bought a ring in Berlin, and Clara bought a camera in Chicago. Where did Clara go shopping?",
        "Robert bought a ring in Berlin, and Clara bought a camera in Chicago. Clara bought the camera in",
        "Robert bought a ring in Berlin, and Clara bought a camera in Chicago. In which city did Clara buy something?",
    ),
    ("sequences", "6, 11, 16, 21, 26"): (
        "6, 11, 16, 21, 26,",
        "Continue this sequence of numbers: 6, 11, 16, 21, 26",
        "The sequence 6, 11, 16, 21, 26 continues with",
        "Which number comes next in this sequence: 6, 11, 16, 21, 26?",
    ),
    ("categories", "Of the words finger, tiger, drill and bicycle, the one that is a tool is"): (
        "Of the words finger, tiger, drill and bicycle, the one that is a tool is",
        "Which of these words is a tool: finger, tiger, drill and bicycle?",
        "There are four words: finger, tiger, drill and bicycle. The tool is the",
        "Find the tool: finger, tiger, drill and bicycle.",
    ),
}


class TestQuestions:
    @pytest.mark.parametrize("task", KEPT_TASKS)
    def test_every_question_can_be_asked(self, task: str) -> None:
        questions = KEPT_TASKS[task]()
        assert len(questions) >= 100
        assert len({q.id for q in questions}) == len(questions)
        for question in questions:
            assert len(set(question.wrong)) >= (1 if task == "agreement" else 3)
            assert question.right not in question.wrong

    def test_there_are_enough_of_them(self) -> None:
        assert len(draw_questions(ALL, "all", 0)) >= 1200
        assert draw_questions(("plurals",), "all", 0)[:50] == draw_questions(("plurals",), 50, 0)

    def test_distinct_options_with_the_right_one_marked(self) -> None:
        right = {(task, q.id): q.right for task, builder in KEPT_TASKS.items() for q in builder()}
        for probe in draw_questions(ALL, 100, seed=3):
            assert len(set(probe.options)) == len(probe.options) == (2 if probe.task == "agreement" else 4)
            assert probe.options[probe.answer] == right[probe.task, probe.id]

    def test_same_seed_same_questions_and_more_items_change_none(self) -> None:
        few, many = draw_questions(ALL, 10, seed=0), draw_questions(ALL, 50, seed=0)
        assert few == draw_questions(ALL, 10, seed=0) != draw_questions(ALL, 10, seed=1)
        assert set(few) < set(many)

    def test_the_right_option_stands_anywhere(self) -> None:
        """Over 20 seeds and 160 questions each place has 1/4; 5 standard deviations are 0.04."""
        places = collections.Counter(p.answer for seed in range(20) for p in draw_questions(DEFAULT_TASKS, 40, seed))
        total = places.total()
        assert total == 20 * 160
        assert all(abs(places[i] / total - 0.25) < 0.04 for i in range(4))

    @pytest.mark.parametrize("task", KEPT_TASKS)
    def test_known_facts(self, task: str) -> None:
        found = {question.id: question.right for question in KEPT_TASKS[task]()}
        for item, right in FACTS[task].items():
            assert found[item] == right or (task == "agreement" and found[item] in right), item

    def test_two_currencies_that_look_alike_are_never_both_offered(self) -> None:
        for question in KEPT_TASKS["currencies"]():
            assert not [name for name in question.wrong if name[:3] == question.right[:3]]
        assert "krone" not in {q.id: q.wrong for q in KEPT_TASKS["currencies"]()}["Sweden"]

    def test_the_noun_before_the_verb_misleads(self) -> None:
        """Half of the subjects are plural, and the other noun always has the other number."""
        questions = KEPT_TASKS["agreement"]()
        plural = [q for q in questions if q.right in ("are", "were", "have", "need")]
        assert len(plural) == len(questions) / 2
        assert not any(q.plain.endswith("s") for q in plural)
        assert all(q.plain.endswith("s") for q in questions if q not in plural)

    def test_nothing_gives_the_answer_away(self) -> None:
        for probe in draw_questions(ALL, 100, seed=0):
            if probe.task in ("capitals", "continents", "currencies"):
                answer = probe.options[probe.answer].lower()
                assert not set(answer.split()) & set(probe.id.lower().split()), probe

    def test_articles(self) -> None:
        stems = {q.id: q.plain for q in KEPT_TASKS["capitals"]()}
        assert stems["The Netherlands"] == "The capital of the Netherlands is"
        assert stems["Philippines"] == "The capital of the Philippines is"
        assert stems["France"] == "The capital of France is"

    def test_each_wording_as_it_is_asked(self) -> None:
        """The first is what every run and cached result since the start was asked; a change of it is a new task."""
        found = {task: {q.id: q for q in builder()} for task, builder in KEPT_TASKS.items()}
        for (task, item), (plain, chat, again, chat_again) in WORDINGS.items():
            question = found[task][item]
            assert (question.plain, question.chat) == (plain, chat)
            assert question.reworded == (again, chat_again)
        assert {task for task, _ in WORDINGS} == set(KEPT_TASKS) - {"agreement"}

    def test_every_task_but_agreement_has_a_second_wording(self) -> None:
        probes = draw_questions(ALL, "all", 0)
        again = reworded(probes)
        assert [p.id for p in again] == [p.id for p in probes if p.task != "agreement"]
        for first, second in zip([p for p in probes if p.reworded()], again, strict=True):
            wording = {"plain": first.template.plain, "chat": first.template.chat}
            same = dataclasses.replace(second, template=dataclasses.replace(second.template, **wording))
            assert same == first
            assert second.template.plain != first.template.plain
            assert second.template.chat != first.template.chat

    def test_too_many_says_how_many_there_are(self) -> None:
        with pytest.raises(ConfigError, match=r"kept.items=1000, but the kept task 'capitals' has only \d+ items"):
            draw_questions(ALL, 1000, seed=0)


@pytest.mark.slow
def test_plurals_are_those_of_two_dictionaries() -> None:
    """A task of the bench cannot wait two seconds for one of them."""
    import inflect
    import lemminflect

    pairs = [pair.split("/") for pair in NOUNS.split()]
    assert len(pairs) == len(plurals()) == 124
    engine = inflect.engine()
    assert [noun for noun, plural in pairs if str(engine.plural_noun(noun)) != plural] == []
    assert [noun for noun, plural in pairs if plural not in lemminflect.getInflection(noun, "NNS")] == []
