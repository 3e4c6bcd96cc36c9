"""Generated kept tasks: each answer is derived once more from the words of its question."""

from __future__ import annotations

import itertools
import re

from experiments.evaluation.choices import named_first
from experiments.evaluation.kept_tasks.question import Question
from experiments.evaluation.kept_tasks.reasoning import KINDS, categories, reading, sequences


def test_the_answer_is_what_the_sentence_says_of_the_person_asked_about() -> None:
    asked = set()
    for one in reading():
        facts = {who: (thing, city) for who, thing, city in re.findall(r"(\w+) bought a (\w+) in (\w+)", one.plain)}
        question = one.chat.partition(". ")[2]
        (who,) = [name for name in facts if name in question]
        place = question.startswith("Where")
        assert one.right == facts[who][place]
        other = next(name for name in facts if name != who)
        assert set(one.wrong) == {other, *facts[other]}
        assert one.reply.format(one.right) in (f"{who} bought a {facts[who][0]}.", one.plain.split(", and ")[0] + ".",
                                               one.plain.split(", and ")[1].partition(". ")[0] + ".")  # fmt: skip
        asked.add(place)
    assert asked == {True, False}


def test_a_free_reply_in_whole_sentences_names_the_answer_first() -> None:
    for task, builder in (("reading", reading), ("categories", categories)):
        for template in builder():
            question = Question.draw(task, template, 0)
            assert named_first(template.reply.format(template.right), question.options) == question.answer


def test_a_sequence_goes_on_with_its_step() -> None:
    for one in sequences():
        numbers = [int(word) for word in one.id.split(", ")]
        assert len(numbers) == 5
        assert {b - a for a, b in itertools.pairwise(numbers)} == {numbers[1] - numbers[0]}
        assert int(one.right) == 2 * numbers[4] - numbers[3]


def test_one_word_alone_is_of_the_kind() -> None:
    for one in categories():
        (kind,) = re.findall(r"^The (.*) is \{\}", one.reply)
        words = KINDS[kind].split()
        assert one.right in words
        assert not set(one.wrong) & set(words)
        assert all(word in one.plain for word in (one.right, *one.wrong))
        assert f"{'an' if kind == 'animal' or kind == 'instrument' else 'a'} {kind} is" in one.plain


def test_no_word_is_of_two_kinds() -> None:
    words = [word for words in KINDS.values() for word in words.split()]
    assert len(set(words)) == len(words) == 80
