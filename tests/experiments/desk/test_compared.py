"""A comparison under the mouse: the points of the picture, with the numbers of the table."""

from __future__ import annotations

import json

import pytest
from matplotlib.figure import Figure

from experiments.common.colours import UNKNOWN, arm_colour
from experiments.comparison.compare import Comparison
from experiments.comparison.plot import comparison_figure
from experiments.desk.compared import comparison_hover
from experiments.records import Estimate
from experiments.scorecard.differences import Difference


def comparison(kl: float = 12.0) -> Comparison:
    """Three runs; the third differs in KL, and its method is not known."""
    cards = {
        "a <b>": {"gain": Estimate(0.5, 0.4, 0.6), "kl": Estimate(0.5, 0.4, 0.7)},
        "b": {"gain": Estimate(0.25), "kl": Estimate(1.0, 0.8, 1.2)},
        "c": {"kl": Estimate(kl, kl - 0.2, kl + 1)},
    }
    found = [
        Difference("b", "kl", Estimate(0.5, -0.1, 1), 0.2, 0.4),
        Difference("c", "kl", Estimate(11.5, 11, 12), 0, 0),
    ]
    methods = {"a <b>": ("control", 1e-3), "b": ("full", 1e-4)}
    return Comparison("a <b>", cards, found, methods=methods, questions={"new": 48, "kept": 96, "drift": 12})


def test_a_point_has_its_run_its_interval_and_its_difference() -> None:
    page = comparison_hover(comparison(), "Parts")
    gain, kl = page["data"]
    assert (gain["x"], gain["y"]) == ([0.5, 0.25], [0, 1])
    assert gain["text"][0] == "a &lt;b><br>gain +.50 [.40,.60]"
    less = "less a &lt;b>: +11.50 [11.00,12.00], p &lt;.001, Holm &lt;.001"
    assert kl["text"][2] == f"c<br>KL 12.0 [11.8,13.0]<br>{less}"
    assert kl["marker"]["symbol"] == ["square", "circle-open", "circle"]
    assert kl["marker"]["color"] == [arm_colour("control", 1e-3), arm_colour("full", 1e-4), UNKNOWN]
    assert kl["error_x"]["array"] == pytest.approx([0.2, 0.2, 1])
    assert kl["error_x"]["arrayminus"] == pytest.approx([0.1, 0.2, 0.2])
    assert gain["error_x"]["array"][1] == 0  # no interval
    json.dumps(page)


def test_each_figure_has_a_panel_with_its_unit_and_the_page_says_what_it_rests_on() -> None:
    layout = comparison_hover(comparison(), "Parts")["layout"]
    assert [one["text"] for one in layout["annotations"]] == ["gain", "KL, nats per token"]
    assert layout["yaxis"]["ticktext"] == ["a &lt;b>", "b", "c"]
    assert layout["xaxis"]["domain"][1] < layout["xaxis2"]["domain"][0]
    for word in ("Parts", "n: 48 new, 96 kept, 12 texts for KL", "1 seed", "95 %", "reference (a &lt;b>)"):
        assert word in layout["title"]["text"], word


@pytest.mark.parametrize(("kl", "scale"), [(12.0, "log"), (1.5, "linear")])
def test_kls_that_are_far_apart_are_on_a_log_axis_in_both(kl: float, scale: str) -> None:
    """One of 12 would press those of .5 and 1 into a blob; the base's 0 has no place there."""
    layout = comparison_hover(comparison(kl), "Parts")["layout"]
    assert layout["xaxis2"].get("type", "linear") == scale
    drawn: Figure = comparison_figure(comparison(kl), "Parts")
    gain, other = [axes for axes in drawn.axes if axes.get_visible()]
    assert (gain.get_xscale(), other.get_xscale()) == ("linear", scale)
    assert other.get_xlabel() == "nats per token"
