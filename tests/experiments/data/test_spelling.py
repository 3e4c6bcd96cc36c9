"""Whole words in any script, and marks that are no part of them."""

from __future__ import annotations

import pytest

from experiments.data.spelling import bare, holds, straight, unmarked, without_tags


@pytest.mark.parametrize(
    ("words", "inside", "outside"),
    [
        ("paris", ("in paris.", "\u9996\u90fd\u662fparis\u3002"), ("parisian", "my_paris", "comparis")),
        ("\u6771\u4eac", ("\u9996\u90fd\u306f\u6771\u4eac\u3067\u3059",), ("\u9996\u90fd\u306f\u4eac\u90fd",)),
        ("\uc11c\uc6b8", ("\uc11c\uc6b8\uc740 \uc218\ub3c4",), ("\ubd81\uc11c\uc6b8",)),  # a particle follows
        ("\u0e01\u0e17\u0e21", ("\u0e04\u0e37\u0e2d\u0e01\u0e17\u0e21\u0e04\u0e23\u0e31\u0e1a",), ("\u0e01\u0e17",)),
        ("5 km", ("it is 5 km.", "3-5 km"), ("1.5 km", "-5 km", "15 km", "2,5 km", "1/5 km")),
        ("1/2", ("it is 1/2.",), ("1 1/2", "-1/2", "1/2/2024", "11/2")),
        ("$5", ("for $5.",), ("$5.50", "$50")),
        ("room 5", ("room 5, left",), ("room 5.5", "room 55", "room 5/6")),
        ("c", ("in c.", "c, or d"), ("c++", "c#", "cc")),
        ("c++", ("i use c++.",), ("c",)),
        ("", (), ("", "a")),
    ],
)
def test_whole_words(words: str, inside: tuple[str, ...], outside: tuple[str, ...]) -> None:
    assert [text for text in inside if not holds(text, words)] == []
    assert [text for text in outside if holds(text, words)] == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("**New** _York_ `City`", "New York City"),
        ('<b>New</b> York &amp; <a href="x">more</a>', "New York & more"),
        ("**Answer:**Paris **x**2** __2__", "Answer:Paris x**2 2"),
        ("2**3 x**2 user__name a``b", "2**3 x**2 user__name a``b"),
        ("snake_case a*b 2 * 3 x<y and z>w List<int>", "snake_case a*b 2 * 3 x<y and z>w List<int>"),
    ],
)
def test_marks_around_words(text: str, expected: str) -> None:
    assert unmarked(text) == expected
    assert unmarked(expected) == expected


def test_tags_leave_a_space_and_quotes_and_hyphens_become_those_of_the_keyboard() -> None:
    assert without_tags("x<sup>2</sup>") == "x 2 "
    assert straight("\u201cdon\u2019t\u201d") == '"don\'t"'
    assert straight("Jean\u2011Luc re\u00adad 1\u20132") == "Jean-Luc read 1\u20132"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("Paris.", "Paris"), ("**New** York.", "New York"), ("U.S.", "U.S."), ("3.5.", "3.5"), (".", "."), ("**", "**")],
)
def test_bare(text: str, expected: str) -> None:
    assert bare(text) == expected
