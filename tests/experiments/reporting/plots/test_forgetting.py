"""The picture of retention against gain over invented arms."""

from __future__ import annotations

import math
import re

import pytest
from matplotlib.colors import to_rgb

from experiments.common.colours import arm_colour
from experiments.records import ArmResult, Estimate
from experiments.reporting.plots.forgetting import forgetting_figure, looks, points
from tests.helpers.invented_arms import six, synthetic, twelve


def test_arms_differ_in_colour_and_marker_and_rates_in_line_and_fill() -> None:
    drawn = looks(twelve())
    assert len({(look.colour, look.marker, look.line, look.filled) for look in drawn}) == 12
    full, other = drawn[0], drawn[1]
    assert full.marker == other.marker
    assert full.colour != other.colour  # another shade of one hue
    assert full.line != other.line
    assert drawn[0].line == drawn[2].line
    assert drawn[0].colour != drawn[2].colour


def test_hue_tells_the_method_as_everywhere_and_the_marker_the_arm() -> None:
    made = [synthetic("a", 1e-3, 0.4, 0.9), synthetic("b", 1e-3, 0.3, 0.9), synthetic("c", 1e-3, 0.3, 0.8)]
    for result, method in zip(made, ("control", "control", "full"), strict=True):
        result.method = method
    first, second, third = looks(made)
    assert first.colour == second.colour == to_rgb(arm_colour("control", 1e-3))
    assert third.colour == to_rgb(arm_colour("full", 1e-3))
    assert first.marker != second.marker
    alone = looks(made[:2])  # of one method: the hue is free to tell the arm
    assert alone[0].colour != alone[1].colour


@pytest.mark.parametrize("results", [six(), twelve(), twelve()[4:5]], ids=["six", "twelve", "one"])
def test_names_in_the_plot_do_not_cover_each_other(results: list[ArmResult]) -> None:
    figure = forgetting_figure(results, "synthetic")
    figure.draw_without_rendering()
    axes = figure.axes[0]
    names = [t for t in axes.texts if re.search(r"e-\d", t.get_text())]
    assert len(names) == len(results)
    boxes = [t.get_window_extent() for t in names]
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:i]), names[i].get_text()
        assert box.x0 > 0
        assert box.x1 < figure.bbox.x1
        assert box.y1 < figure.bbox.y1
        ends = [axes.transData.transform([p.value for p in points(r)[-1]]) for r in results]
        assert not any(box.contains(*end) for end in ends), names[i].get_text()


def test_the_plot_starts_at_the_base_model_and_ends_at_the_last_step() -> None:
    result = synthetic("full", 1e-3, 0.4, 0.9)
    axes = forgetting_figure([result], "synthetic").axes[0]
    line = max(axes.lines, key=lambda each: len(each.get_xdata()))  # type: ignore[arg-type]
    assert line.get_xydata()[0].tolist() == [0, 1]
    assert line.get_xydata()[-1].tolist() == pytest.approx([0.4, 0.9])
    assert len(line.get_xdata()) == 4  # type: ignore[arg-type]
    result.trajectory[2]["gain"] = Estimate(math.nan)
    assert len(points(result)) == 2
