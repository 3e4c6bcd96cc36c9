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


def still(count: int, right: int) -> list[list[Record]]:
    """Two tasks, measured three times with the same answers: none flips."""
    rows = [Record("new", t, "generate", f"{i:03d}", correct=int(i < right)) for t in "ab" for i in range(count)]
    return [rows, list(rows), list(rows)]


@pytest.mark.parametrize("right", [0, 10, 20])
def test_without_a_flip_the_transfer_of_a_task_may_have_been_missed(right: int) -> None:
    """`0.00 [0.00,0.00]` of 20 questions must not be printed: in a sample 1 of 2 tasks that lose 3 in 100 show none."""
    found = stream(still(20, right), ["a", "b"], draws=2000)
    for name in ("stream_bwt", "stream_f", "stream_fwt"):
        low, value, high = found[name].low, found[name].value, found[name].high
        assert low is not None
        assert high is not None
        assert value == 0
        assert 1.5 / 20 < high < 3.7 / 20
        assert -3.7 / 20 < low < -1.5 / 20
    op = found["stream_op"]
    assert op.low is not None
    assert op.high is not None
    assert 0 <= op.low < op.high <= 1


def test_few_texts_of_a_stream_are_few() -> None:
    """Their draws are widened as those of other texts; one text has no interval."""
    rng = np.random.default_rng(0)
    values = [rng.normal(2, 0.1, (2, 9)) for _ in range(3)]

    def stages(count: int) -> list[list[Record]]:
        return [
            [
                Record("new", t, "nll", str(i), value=float(v[j, i]), tokens=10)
                for j, t in enumerate("ab")
                for i in range(count)
            ]
            for v in values
        ]

    few = stream(stages(9), ["a", "b"], draws=4000)["stream_bwt"]
    assert few.low is not None
    assert few.high is not None
    changes = values[1][0] - values[2][0]
    student = float(2.306 * changes.std(ddof=1) / 3)
    assert few.high - few.low == pytest.approx(2 * student, rel=0.12)
    assert stream(stages(1), ["a", "b"], draws=200)["stream_bwt"].low is None


@pytest.mark.slow
@pytest.mark.parametrize(("count", "lost"), [(20, 0.03), (20, 0.2), (64, 0.05)])
def test_intervals_of_a_stream_cover_where_few_answers_flip(count: int, lost: float) -> None:
    rng, hits, runs = np.random.default_rng(count), 0, 300
    for seed in range(runs):
        before = rng.random(count) < 0.1
        learned = before | (rng.random(count) < 0.8)
        kept = learned & (rng.random(count) >= lost)
        rows = [
            [Record("new", t, "generate", f"{i:03d}", correct=int(c)) for t in "ab" for i, c in enumerate(side)]
            for side in (before, learned, kept)
        ]
        found = stream(rows, ["a", "b"], 300, seed)["stream_bwt"]
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= -(0.1 + 0.9 * 0.8) * lost <= found.high
    assert hits / runs >= 0.93, hits / runs
