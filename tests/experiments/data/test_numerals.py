"""One spelling for numbers, whatever the reply's."""

from __future__ import annotations

import pytest

from experiments.data.numerals import tidy


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\u2212.5 and \u20135", "-.5 and -5"),
        ("a \u2013 b, 3 \u2013 5", "a \u2013 b, 3 \u2013 5"),  # dashes between words stay
        ("1\u202f234\u00a0567,5", "1234567,5"),
        ("1\u202f23, 1 234, 1\u202f2345", "1\u202f23, 1 234, 1\u202f2345"),  # no thousands, or maybe two numbers
        (r"1{,}234 3{,}5 1\,234 \alpha\,123", r"1,234 3,5 1234 \alpha\,123"),
        ("e\u0301", "\u00e9"),
    ],
)
def test_one_spelling(text: str, expected: str) -> None:
    assert tidy(text) == expected
    assert tidy(expected) == expected
