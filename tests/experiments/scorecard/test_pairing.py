"""Records that do not pair are named."""

from __future__ import annotations

import dataclasses

import pytest

from experiments.records import Record
from experiments.scorecard import pair_records, scorecard
from tests.helpers.scored_answers import answers


def test_faults_name_the_record() -> None:
    base, after = answers({("t", "1"): (1, 1), ("t", "2"): (1, 0)})
    with pytest.raises(ValueError, match=r"no partner among the after records for kept/t/chat/2 \(1 missing in all\)"):
        scorecard(base, after[:1])
    with pytest.raises(ValueError, match="no partner among the base records for kept/t/chat/1"):
        pair_records(base[1:], after)
    with pytest.raises(ValueError, match="kept/t/chat/1 occurs twice among the base records"):
        scorecard([*base, base[0]], after)
    with pytest.raises(ValueError, match="kept/t/chat/2 has no 'correct'"):
        scorecard(base, [after[0], dataclasses.replace(after[1], correct=None)])
    with pytest.raises(ValueError, match=r"draws must be 100 or more .* but got 10"):
        scorecard(base, after, draws=10)
    text = Record("text", "prose", "nll", "a", value=1.0, tokens=5)
    with pytest.raises(ValueError, match="text/prose/nll/a covers 5 tokens in base and 6 in after"):
        scorecard([text], [dataclasses.replace(text, tokens=6)])
    drift = Record("drift", "replies", "kl", "a", value=1.0, tokens=5)
    with pytest.raises(ValueError, match="drift/replies/kl/a occurs twice"):
        scorecard([], [drift, drift])


def test_other_options_or_another_answer_are_another_question() -> None:
    asked = Record("kept", "t", "chat", "1", correct=1, choice=0, answer=0, options=("x", "y"))
    turned = dataclasses.replace(asked, choice=1, answer=1, options=("y", "x"))
    assert len(pair_records([asked], [turned])) == 1  # the order may differ
    reply = Record("new", "t", "generate", "1", correct=1, answer="5")
    unknown = dataclasses.replace(reply, answer=None)  # of a foreign file
    assert len(pair_records([unknown], [reply])) == 1
    for one, changes in ((asked, {"options": ("x", "z")}), (asked, {"answer": 1}), (reply, {"answer": "6"})):
        with pytest.raises(ValueError, match="has other options or another right answer in base and after"):
            pair_records([one], [dataclasses.replace(one, **changes)])
