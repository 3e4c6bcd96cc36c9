"""Many arms have a small panel each."""

from __future__ import annotations

import pytest
from matplotlib.colors import to_hex

from experiments.common.colours import arm_colour
from experiments.records import ArmResult
from experiments.reporting.plots.caption import Asked
from experiments.reporting.plots.multiples import MOST, OTHERS, gained_kept_figure, multiples_figure
from tests.helpers.invented_arms import synthetic


def made(arms: int, rates: tuple[float, ...] = (1e-3, 1e-4)) -> list[ArmResult]:
    found = [synthetic(f"a{i}", rate, 0.3 + 0.01 * i, 1 - 0.02 * i) for i in range(arms) for rate in rates]
    for result in found:
        result.method = "full" if result.arm == "a0" else "control"
    return found


def test_few_arms_share_a_panel_and_many_have_one_each() -> None:
    assert len(gained_kept_figure(made(4), "four").axes) == 1
    assert MOST == 8
    many = gained_kept_figure(made(5), "five", Asked({"new": 9}))
    assert [axes.get_title(loc="left") for axes in many.axes if axes.get_visible()] == [f"a{i}" for i in range(5)]
    assert many.get_supxlabel().startswith("n: 9 new; 1 seed; bars: 95 %")


def test_an_arm_is_in_its_colour_and_the_others_are_grey() -> None:
    panel = multiples_figure(made(5), "five").axes[0]
    colours = [to_hex(line.get_color()) for line in panel.lines if len(line.get_xdata()) == 4]  # type: ignore[arg-type]
    assert colours.count(OTHERS) == 8
    assert {arm_colour("full", 1e-3), arm_colour("full", 1e-4)} == set(colours) - {OTHERS}
    assert {text.get_text() for text in panel.texts} == {"1e-3", "1e-4"}


@pytest.mark.parametrize("arms", [1, 4, 5, 17])
def test_the_lowest_panel_of_each_column_names_its_axis(arms: int) -> None:
    shown = [axes for axes in multiples_figure(made(arms, (1e-3,)), "arms").axes if axes.get_visible()]
    assert len(shown) == arms
    assert sum(axes.get_xlabel() == "gain" for axes in shown) == min(arms, 4)
    assert shown[-1].get_xlabel() == "gain"


def test_the_caption_explains_a_cross_if_there_is_one() -> None:
    results = made(5)
    assert "cross" not in multiples_figure(results, "five").get_supxlabel()
    results[0].status = "pruned"
    pruned = multiples_figure(results, "five")
    assert pruned.get_supxlabel().replace("\n", " ").endswith("cross: an arm that did not finish")
    assert sum(line.get_marker() == "x" for axes in pruned.axes for line in axes.lines) == 1
