"""The names that a figure can have are those that suites measure."""

from __future__ import annotations

from experiments.scorecard import aa_floor, scorecard
from experiments.scorecard.names import figure_names
from tests.helpers.planted_run import kept, new


def test_a_study_may_name_what_its_suites_measure() -> None:
    names = figure_names(("new", "kept", "drift", "text"), ("capitals",))
    assert {"gain", "retention/capitals", "retention_chat", "kl", "perplexity_drift", "cost/seconds"} <= set(names)
    assert not {"instructions_accuracy", "stream_bwt", "floor_nfr", "average_harmonic", "area"} & set(names)
    base = [kept(1, 0), kept(2, 0, "facts1"), new(1, 1)]
    assert set(scorecard(base, base, 100)) <= set(figure_names(("new", "kept"), ("facts", "facts1")))
    floor = set(figure_names((), ("facts", "facts1"), floor=True)) - set(figure_names(()))
    asked_otherwise = {f"floor_retention_{form}" for form in ("plain", "generate", "lm_eval")}
    assert set(aa_floor(base, base, base, 100)) == floor - asked_otherwise
    assert "stream_bwt" in figure_names(("new", "kept"), stream=True)
    assert "stream_bwt" not in figure_names(("kept",), stream=True)
    assert {"gain", "retention/x"} <= set(figure_names(("lm_eval",), ("x",)))
