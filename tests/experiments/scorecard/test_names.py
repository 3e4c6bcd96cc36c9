"""The list of names holds what a scorecard makes, so that no study is refused for a figure that exists."""

from __future__ import annotations

import numpy as np

from experiments.scorecard import aa_floor, scorecard
from experiments.scorecard.names import figure_names
from tests.helpers.simulated import base_records
from tests.helpers.studies import records


def test_every_figure_of_a_card_is_listed() -> None:
    card = scorecard(records(0, 0.1, 0.8), records(1, 0.6, 0.5), 100)
    names = figure_names(("new", "kept", "drift", "text"), ("capitals",))
    assert set(card) <= set(names)
    base = base_records(np.random.default_rng(0), 50)
    assert set(aa_floor(base, base, base, 100)) == set(figure_names((), floor=True)) - set(figure_names(()))
    assert "instructions_accuracy" not in names
    assert "stream_bwt" not in names
    assert "stream_bwt" in figure_names(("new", "kept"), stream=True)
    assert "stream_bwt" not in figure_names(("kept",), stream=True)
    assert {"gain", "retention/x"} <= set(figure_names(("lm_eval",), ("x",)))
