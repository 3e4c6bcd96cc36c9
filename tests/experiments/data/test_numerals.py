"""One spelling for numbers, whatever the reply's."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from experiments.data.numerals import in_one_spelling, last_number, tidy


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\u2212.5 and \u20135", "-.5 and -5"),
        ("a \u2013 b, 3 \u2013 5", "a \u2013 b, 3 \u2013 5"),  # dashes between words stay
        ("1\u202f234\u00a0567,5", "1234567,5"),
        ("1\u202f23, 1 234, 1\u202f2345", "1\u202f23, 1 234, 1\u202f2345"),  # no thousands, or maybe two numbers
        (r"1{,}234 3{,}5 1\,234 \alpha\,123", r"1,234 3,5 1234 \alpha\,123"),
        ("e\u0301", "\u00e9"),
        ("\uff11\uff0c\uff12\uff13\uff14\uff0e\uff15", "\uff11,\uff12\uff13\uff14.\uff15"),  # of a full width
        ("\u0661\u066c\u0662\u0663\u0664\u066b\u0665", "\u0661,\u0662\u0663\u0664.\u0665"),  # Arabic
        ("1\uff0f2 1\u20442", "1/2 1/2"),
        ("a\uff0c1\uff0c b\uff0f2", "a\uff0c1\uff0c b\uff0f2"),  # not between digits
    ],
)
def test_one_spelling(text: str, expected: str) -> None:
    assert tidy(text) == expected
    assert tidy(expected) == expected


@pytest.mark.parametrize(
    ("said", "value"),
    [
        ("\uff14\uff12", 42), ("\u0664\u0662", 42), ("it is 10,00,000", 1_000_000), ("1'234'567", 1_234_567),
        ("1\u202f234", 1234), ("\u22122", -2), ("1.5 or 3/2", Decimal("1.5")), ("1e3", 1000),
        ("\uff11\uff0c\uff12\uff13\uff14", 1234), ("\u0661\u066c\u0662\u0663\u0664\u066b\u0665", Decimal("1234.5")),
        ("1 234", 1234), ("3,5", Decimal("3.5")), ("1.234.567", 1_234_567), ("10^3", 1000), ("2^10", 10),
        ("3 \u00d7 10^8", 300_000_000), (r"5\cdot10^{-2}", Decimal("0.05")), ("10\u207b\u00b2", Decimal("0.01")),
        ("at 3 \u00d7 10^8.", 300_000_000), ("10^-3.", Decimal("0.001")), ("10^8.5", Decimal("8.5")),
        ("1.5x10^3 m^2", 1500), ("5 m2.", 5), ("5 cm3.", 5), ("5 m2.5", Decimal("2.5")),
        ("3*10^2, 4", 4), ("110^2", 2), ("-2 * 10^3", -2000),
        ("none", None), ("1/0", None),
        (r"\frac{1}{2}", Decimal("0.5")), (r"-\dfrac{ 3 }{4}", Decimal("-0.75")), (r"1\frac12", Decimal("1.5")),
        (r"2\cdot\frac{3}{4}", Decimal("0.75")), (r"\frac{-3}{4}", Decimal("-0.75")),
        (r"\boxed{3,5}", Decimal("3.5")), (r"\(12 500\)", 12_500), (r"$$\boxed{\text{1.234,5}}$$", Decimal("1234.5")),
        (r"is\boxed{-5}", -5),
        ("[3,5]", 5), ("{3,5}", 5), ("1,5 \u00d7 10^3", 1500), (r"-2,5 \times 10^{-3}", Decimal("-0.0025")),
        ("1,234 \u00d7 10^3", 1_234_000), ("1.234,5 \u00d7 10^3", 1_234_500), ("It is 3 / 4.", Decimal("0.75")),
        ("-$7", -7), (r"it is -\$1,200", -1200), ("\u2212\u20ac5", -5), ("$12 - $5", 5), ("x = - 7", -7), ("12 - 7", 7),
    ],
)  # fmt: skip
def test_spellings_of_numbers(said: str, value: Any) -> None:
    assert last_number(said) == value


@pytest.mark.parametrize(
    ("said", "value"),
    [
        ("1 1/2", 1.5), ("\u00bd", 0.5), ("1\u00bd cups", 1.5), ("1 \u00be", 1.75), ("-1 1/2", -1.5),
        ("1,000\u00a01/4", 1000.25),
        ("-\u00bd", -0.5), ("it is \u2212\u00bd.", -0.5), ("-1\u00bd", -1.5), ("3\u2212\u00bd", 0.5),
        ("12 - 5 1/2", 5.5), ("\uff11 \uff11\uff0f\uff12", 1.5), ("it is 1 1\u20442.", 1.5),
        ("1 3/2", 1.5), ("1.5 1/2", 0.5), ("1, 1/2", 0.5), ("1\n1/2", 0.5), ("3/4 1/2", 0.5), ("2 -1/2", -0.5),
    ],
)  # fmt: skip
def test_a_whole_number_and_a_fraction_below_one_are_one_number(said: str, value: float) -> None:
    assert last_number(said) == Decimal(str(value))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1 234,5 and 12 345.", "1234.5 and 12345."),
        (
            "1525,441; 1\u202f525,441; 12345,678; 525,441; 1,525,441",
            "1525.441; 1525.441; 12345.678; 525,441; 1,525,441",
        ),
        ("(1525,441) 1525,441,300 1525,441.5", "(1525,441) 1525,441,300 1525,441.5"),
        ("1.234.567,8; 1.234,5; 3,5; 1,00; 0,125", "1234567.8; 1234.5; 3.5; 1.00; 0.125"),
        ("1,234 1.234 10,00,000", "1,234 1.234 10,00,000"),  # ambiguous, or plain already
        (r"\boxed{12 500} \text{1.234,5} \(3,5\) \[0,25\]", " 12500   1234.5   3.5   0.25 "),
        (r"\boxed{(3,5)} \{3,5\} x_{3,5}", r" (3,5)  \{3,5\} x_{3,5}"),  # lists
        ("1,2,3 (1,2) [3,5] 1 23 1 2345 5 100 7", "1,2,3 (1,2) [3,5] 1 23 1 2345 5 100 7"),  # lists
        ("a1 234 2012 345 10.5 300", "a1 234 2012 345 10.5 300"),
        ("v1.2.3 192.168.0.1 1,5/2", "v1.2.3 192.168.0.1 1,5/2"),
    ],
)
def test_numbers_of_other_countries(text: str, expected: str) -> None:
    assert in_one_spelling(text) == expected
    assert in_one_spelling(expected) == expected
