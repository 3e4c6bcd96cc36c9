"""Each form of an answer, in each way to say it, is right, and other answers are wrong: a part of the whole product.

`python -m tests.helpers.answer_forms` tries all of it.
"""

from __future__ import annotations

import pytest

from tests.helpers.answer_forms import CONTAINS, EXACT, MATH, NONE, NUMERIC, WRAPPERS, cases, fails

STEPS = {
    NONE: 61,
    NUMERIC: 11,
    CONTAINS: 11,
    EXACT: 7,
    MATH: 197,
}  # each so many cases; primes, so that ways take turns


@pytest.mark.parametrize("grader", STEPS)
def test_pairs_of_a_form_and_a_way_to_say_it(grader: str) -> None:
    if grader == MATH:
        pytest.importorskip("math_verify")
    whole = list(cases(grader, whole=False))
    tried = whole[:: STEPS[grader]]
    assert [case for case in tried if fails(case)] == []
    assert len({case.form for case in tried}) > len({case.form for case in whole}) / 2
    assert len({case.wrapper for case in tried}) > len(WRAPPERS) / 3
    assert {case.right for case in tried} == {True, False}
