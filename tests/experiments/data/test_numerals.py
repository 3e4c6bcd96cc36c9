"""One spelling for numbers, whatever the reply's."""

from __future__ import annotations

import pytest

from experiments.data.numerals import in_one_spelling, tidy


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


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1 234,5 and 12 345.", "1234.5 and 12345."),
        ("1.234.567,8; 1.234,5; 3,5; 1,00; 0,125", "1234567.8; 1234.5; 3.5; 1.00; 0.125"),
        ("1,234 1.234 10,00,000", "1,234 1.234 10,00,000"),  # ambiguous, or plain already
        ("1,2,3 (1,2) [3,5] 1 23 1 2345 5 100 7", "1,2,3 (1,2) [3,5] 1 23 1 2345 5 100 7"),  # lists
        ("a1 234 2012 345 10.5 300", "a1 234 2012 345 10.5 300"),
        ("v1.2.3 192.168.0.1 1,5/2", "v1.2.3 192.168.0.1 1,5/2"),
    ],
)
def test_numbers_of_other_countries(text: str, expected: str) -> None:
    assert in_one_spelling(text) == expected
    assert in_one_spelling(expected) == expected
