"""A reply is the answer but for case, spaces, marks and the spelling of numbers."""

from __future__ import annotations

import pytest

from experiments.data.matching import exact_match, last_line, normal, peeled


@pytest.mark.parametrize(
    ("answer", "right", "wrong"),
    [
        (
            "Paris",
            (
                "*Paris*",
                "`Paris`",
                '"Paris".',
                "\u201cParis\u201d",
                "\u00ab Paris \u00bb.",
                "\u300cParis\u300d",
                "\u200bParis",
                "**Answer:** Paris",
                "final answer: paris",
            ),
            ("*Paris", "not *Paris*", "Answer: not Paris", "", "'Paris' or 'Lyon'"),
        ),
        ("don't", ("Don\u2019t", '"don\'t"'), ("dont",)),
        ("Jean-Luc", ("Jean\u2011Luc", "jean\u2010luc.", "Jean-\u00adLuc"), ("Jean Luc", "Jean\u2013Luc")),
        ('"5"', ('"5"', "\u201c5\u201d"), ("5", "`5`")),  # quotes of the answer count
        ("`5`", ("`5`", "**`5`**"), ("5", '"5"')),
        ("-5", ("**Answer:** -5", "Answer: **-5**", "**Answer: -5**", "\u22125"), ("5", "Answer: 5")),
        ("a*b", ("a*b",), ("ab",)),
        (
            "B",
            ("(B)", "b)", "**B.**", "$(B)$", r"\boxed{\text{(B)}}", "Answer: (B)!"),
            ("[B]", "AB", "(C)", "B) or C)"),
        ),
        ("(B)", ("B", "B."), ("A",)),
        ("42", (r"\boxed{42}", r"\[42\]", r"\(\boxed{42}.\)", "$$42$$", "42!"), (r"\boxed{4}2", r"\boxed{42", "$4$2")),
        (r"$\boxed{42}$", ("42", "**42**"), ("24",)),
        ("what?", ("what?", "*What?*"), ("what",)),  # of a sign of the answer
        (r"\boxed{" * 50 + "5" + "}" * 50, (), ("5",)),  # not looked into without an end
    ],
)
def test_a_reply_that_is_the_answer(answer: str, right: tuple[str, ...], wrong: tuple[str, ...]) -> None:
    assert [reply for reply in right if not exact_match(reply, {"answer": answer})] == []
    assert [reply for reply in wrong if exact_match(reply, {"answer": answer})] == []


def test_parts() -> None:
    assert last_line("a\n**Answer:** b\n\n") == "b"
    assert normal("7.") == normal("7.0") == 7
    assert list(peeled("'*x*'.")) == ["'*x*'.", "'*x*'", "*x*", "x"]
