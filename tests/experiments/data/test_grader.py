"""Options of multiple choice, as tables have them, and the numbers of replies."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from experiments.common.errors import ConfigError
from experiments.common.hashing import short_digest
from experiments.data.files import LocalFile
from experiments.data.grader import Choice, Contains, Numeric
from experiments.data.items import Item
from tests.helpers.question_files import write


@pytest.mark.parametrize(
    ("cell", "answer", "right"),
    [
        (["Lyon", "Paris"], "Paris", "Paris"),
        (["Lyon", "Paris"], "B", "Paris"),
        (["Lyon", "Paris"], 1, "Paris"),
        (["3", "1"], 1, "1"),  # a number from 0: the second
        (["3", "1"], "3", "3"),
        (["1", "0"], 0, "1"),
        ([3, 1], 1, "1"),  # options that are numbers
        ([3.0, 1.0, 2.5], 1, "1"),  # as Parquet has them, and JSON by the package datasets: of one type
        ([3.0, 1.0, 2.5], 1.0, "1"),
        ([3, 1], 1.0, "1"),
        ({"text": ["Lyon", "Paris"], "label": [1.0, 2.0]}, 2, "Paris"),
        ({"text": ["Lyon", "Paris"], "label": ["1", "2"]}, "2", "Paris"),
        ({"text": ["Lyon", "Paris"], "label": ["1", "2"]}, 1, "Lyon"),  # its label, not its number from 0
        ({"text": ["Lyon", "Paris"], "label": [1, 2]}, 2, "Paris"),
        ({"text": ["Lyon", "Paris"], "label": ["A", "B"]}, 1, "Paris"),
        ({"text": ["2", "3", "4"], "label": ["1", "2", "3"]}, "3", "4"),  # a label goes before an option: ARC
        ({"text": ["B", "A"], "label": ["A", "B"]}, "A", "B"),  # not the option A
        ({"text": ["Lyon", "Paris"], "label": ["1", "2"]}, "Lyon", "Lyon"),
        ({"text": ["Lyon", "Paris"], "label": ["1", "2"]}, "0", "the answer '0' is none of the options"),
        ('["Lyon", "Paris"]', "B", "Paris"),  # JSON in a cell of CSV
        (["Lyon", "Paris"], "C", r"the answer 'C' is none of the options"),
        (["Lyon"], "Lyon", r"two or more different options"),
        (["Lyon", "Lyon"], "Lyon", r"two or more different options"),
        ("Lyon", "Lyon", r"a list of texts"),
        (["Lyon", "\ud83d"], "Lyon", r"column 'options' holds half of a character"),
    ],
)
def test_options_of_a_row(cell: Any, answer: Any, right: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"question": "q", "options": cell, "answer": answer}])
    source = LocalFile(path=str(path), grader="choice")
    if right in ("Lyon", "Paris", "0", "1", "3", "4", "B"):
        (item,) = source.examples
        assert isinstance(item, Item)
        assert item.answer == right
    else:
        with pytest.raises(ConfigError, match=rf"line 1: .*{right}"):
            source.examples  # noqa: B018


@pytest.mark.parametrize(
    ("names", "fields"),
    [
        (("question", "answer"), {}),
        (("prompt", "completion"), {}),
        (("instruction", "output"), {}),
        (("asked", "gold"), {"question": "asked", "answer": "gold"}),
        (("asked", "gold"), {"question": "asked", "answer": "{gold}"}),
    ],
)
def test_a_whole_number_is_that_of_an_option_whatever_its_column(
    names: tuple[str, str], fields: Any, tmp_path: Path
) -> None:
    row = {names[0]: "q", names[1]: 1, "options": ["1", "2", "0"]}
    (item,) = LocalFile(path=str(write(tmp_path / "a.jsonl", [row])), grader="choice", **fields).examples
    assert isinstance(item, Item)
    assert (item.answer, Choice().remarks([item])) == ("2", [])


@pytest.mark.parametrize("answer", ["1, 2", "1 2345", "1,2,3", "1 23", "2024-01-05", "12:30", "5/1/2024", "3 - 5"])
def test_an_answer_that_may_be_several_numbers_is_refused(answer: str) -> None:
    with pytest.raises(ConfigError, match=rf"the answer '{answer}' is not read as one number: write 1234\.5"):
        Numeric().check([Item("q", answer)])
    right = [
        "1,234",
        "7.",
        "-7",
        "1/2",
        "so 12:30 - 12:25 = 5",
        "-.5",
        "1 1/2",
        "2\u00bd",
        "so it is 3,5",
        "1 234",
        "3,5",
        "1.234.567",
        "12,34",
    ]
    Numeric().check([Item("q", one) for one in right])


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        (
            ["3 hours 20 minutes", "7"],
            ["1 of 2 answers hold several numbers, such as '3 hours 20 minutes': read as 20"],
        ),
        (["1.5 million", "2"], ["1 of 2 answers have a word or sign for thousands .*'1.5 million': read as 1.5"]),
        (["7", "1,234", "1 1/2 cups", "5 km"], []),
    ],
)
def test_an_answer_of_which_only_a_part_is_read_is_said(answers: list[str], said: list[str]) -> None:
    found = Numeric().remarks([Item(f"q{i}", one) for i, one in enumerate(answers)])
    assert len(found) == len(said)
    assert all(re.match(expected, line) for expected, line in zip(said, found, strict=True))


def test_answers_that_sentences_hold_anyway_are_said() -> None:
    items = [Item(f"q{i}", one) for i, one in enumerate(["A", "B", "(A)", "i.", "Ai"])]
    (said,) = Contains().remarks(items)
    assert said.startswith("2 of 5 answers are also words of English, such as 'A': ")
    assert Contains().remarks(items[1:2]) == []


def chosen_of(folder: Path, *rows: tuple[str, str]) -> list[Item]:
    """Return the items of a CSV file, whose cells are all texts: (options, answer)."""
    lines = [f'q{i},"{options}",{answer}' for i, (options, answer) in enumerate(rows)]
    (folder / "a.csv").write_text("\n".join(["question,options,answer", *lines]).replace("'", '""'))
    return [one for one in LocalFile(path=str(folder / "a.csv"), grader="choice").examples if isinstance(one, Item)]


def test_a_number_in_csv_that_may_be_an_option_is_said_or_refused(tmp_path: Path) -> None:
    unclear, number = ("['1','3','4']", "1"), ("['5','6','7']", "2")
    items = chosen_of(tmp_path, unclear)
    assert items[0].answer == "1"
    assert "each answer is an option, and also the number of another, such as '1'" in Choice().remarks(items)[0]
    with pytest.raises(ConfigError, match=r"'1' to 'q0' is an option and the number of another, and that to 'q1'"):
        Choice().check(chosen_of(tmp_path, unclear, number))
    for clear in ([unclear, ("['1','3','4']", "4")], [number], [("['0','1']", "1")], [("['Lyon','Paris']", "1")]):
        items = chosen_of(tmp_path, *clear)
        Choice().check(items)
        assert Choice().remarks(items) == []


def test_a_whole_float_may_be_an_option_too_or_a_number_in_a_column_with_empty_cells(tmp_path: Path) -> None:
    row = {"question": "q", "options": ["1", "3", "0"], "answer": 1.0}
    (item,) = LocalFile(path=str(write(tmp_path / "a.jsonl", [row])), grader="choice").examples
    assert isinstance(item, Item)
    assert "each answer is an option, and also the number of another" in Choice().remarks([item])[0]


def test_another_version_of_a_grader_has_another_digest() -> None:
    """Records that were graded by other code are not taken for those of today's; version 1 is not in the digest."""

    class Newer(Numeric):
        version = 2

    Newer.__name__ = "Numeric"
    assert Numeric().digest() == short_digest("Numeric", Numeric().model_dump_json())
    assert Newer().digest() != Numeric().digest()
