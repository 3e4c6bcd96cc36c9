"""Figures of a stream against their definitions in plain loops."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.records import Record
from experiments.scorecard import (
    stream,
    stream_figures,
    stream_matrix,
)


def test_stream_figures_match_their_definitions_in_loops() -> None:
    r = np.random.default_rng(4).random((5, 4))  # row 0: untrained; R[t, j] is r[t, j - 1]
    t = 4
    found = stream_figures(r)
    assert found["stream_op"] == pytest.approx(sum(r[t, j - 1] for j in range(1, t + 1)) / t)
    assert found["stream_bwt"] == pytest.approx(sum(r[t, j - 1] - r[j, j - 1] for j in range(1, t)) / (t - 1))
    best = [max(r[late, j - 1] - r[t, j - 1] for late in range(1, t)) for j in range(1, t)]
    assert found["stream_f"] == pytest.approx(sum(best) / (t - 1))
    assert found["stream_fwt"] == pytest.approx(sum(r[j - 1, j - 1] - r[0, j - 1] for j in range(2, t + 1)) / (t - 1))
    with pytest.raises(ValueError, match=r"but got shape \(4, 4\)"):
        stream_figures(r[1:])


def answers(rng: np.random.Generator, rates: dict[str, float]) -> list[Record]:
    return [
        Record("kept", t, "chat", str(i), correct=int(rng.random() < a)) for t, a in rates.items() for i in range(400)
    ]


def test_a_stream_of_records_has_the_figures_of_its_accuracies() -> None:
    rng = np.random.default_rng(5)
    rates = ({"a": 0.2, "b": 0.3}, {"a": 0.9, "b": 0.4}, {"a": 0.6, "b": 0.8})
    stages = [answers(rng, r) for r in rates]
    found = stream(stages, ["a", "b"], draws=400)
    assert found["stream_bwt"].value == pytest.approx(-0.3, abs=0.1)
    assert found["stream_f"].value == pytest.approx(-found["stream_bwt"].value)  # two tasks: the best is the first
    assert found["stream_fwt"].value == pytest.approx(0.1, abs=0.1)
    assert all(e.low is not None and e.high is not None and e.low < e.value < e.high for e in found.values())
    observed = stream_matrix(stages, ["a", "b"], draws=100)[..., 0]
    for t, stage in enumerate(stages):
        for j, task in enumerate("ab"):
            assert observed[t, j] == np.mean([r.correct or 0 for r in stage if r.task == task])
    text = Record("new", "c", "nll", "x", value=1.0, tokens=9)
    with pytest.raises(
        ValueError, match="answers and texts have no common scale, but 'c' is a text and others are not"
    ):
        stream([[*stage, text] for stage in [*stages, stages[0]]], ["a", "b", "c"])
    with pytest.raises(ValueError, match=r"2 tasks need 3 stages, the untrained model first: got 2"):
        stream(stages[1:], ["a", "b"])
    with pytest.raises(ValueError, match="task 'b' was not measured on the same items at every stage"):
        stream([*stages[:2], stages[2][:500]], ["a", "b"])
