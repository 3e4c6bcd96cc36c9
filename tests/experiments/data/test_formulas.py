"""The formula that a reply ends with."""

from __future__ import annotations

import pytest

from experiments.data.formulas import as_formula, as_latex, last_box, last_formula


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("-1 1/2 and 12 3/4 m", "-3/2 and 51/4 m"),
        ("1 3/2, 2,1 1/2, x^2 1/2", "1 3/2, 2,1 1/2, x^2 1/2"),  # no mixed numbers
        ("{1 1/2} x_{1 1/2} 1\u00bd \u22122 1\\,000", "{3/2} x_{1 1/2} 3/2 -2 1000"),
        ("5/6. (5/6.) $5/6.$ 1.5 1.\\overline{3}", "5/6 (5/6) $5/6$ 1.5 1.\\overline{3}"),
        ("1.60e-3, 2E+3.", "0.00160, 2000"),
        ("2e, 2e3x, a1e3", "2e, 2e3x, a1e3"),
        ("x\u00b2 + 10\u207b\u00b3", "x^{2} + 10^{-3}"),
        ("2\u221a3 \u221a(x+1) \u221e", r"2\sqrt{3} \sqrt{x+1} \infty "),
    ],
)
def test_signs_in_latex(text: str, expected: str) -> None:
    assert as_latex(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("12 345", "12345"), ("$12{,}345$", "12345"), ("1.5 \u00d7 10^3", "1500"), ("**2 1/2**.", "5/2"),
        ("x = 1,234.5", "1234.5"),
        ("\\text{\u00bd}", "1/2"), ("3,5", "3,5"), ("(1,234)", "(1,234)"), ("2x = 6", "2x = 6"),
        ("5!", "5!"), (r"\$1,200", "1200"),
        (r"2\sqrt{3}.", r"2\sqrt{3}"),
    ],
)  # fmt: skip
def test_a_number_has_one_spelling_as_a_formula(text: str, expected: str) -> None:
    assert as_formula(text) == expected


@pytest.mark.parametrize(
    ("reply", "box", "formula"),
    [
        ("It is (1, 2).", "", "(1, 2)"),
        ("We add 2 and 3 (it is 5).\nI hope this helps!", "", "5"),
        (r"So \frac{1}{2}, or so", "", r"\frac{1}{2}"),
        ('{"answer": .5}', "", ".5"),
        (r"\boxed{1}, no: \boxed{\frac{1}{2}}!", r"\frac{1}{2}", r"\boxed{\frac{1}{2}}"),
        (r"\boxed{\{1\}} and \boxed{2", "", r"\boxed{2"),
        ("none", "", ""),
    ],
)
def test_the_formula_that_a_reply_ends_with(reply: str, box: str, formula: str) -> None:
    assert last_box(reply) == box
    assert last_formula(reply) == formula
