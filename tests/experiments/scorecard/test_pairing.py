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
