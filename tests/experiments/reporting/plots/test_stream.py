"""The picture of a stream: the matrix of each arm, on one scale."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.reporting.page import image_bytes
from experiments.reporting.plots.stream import stream_figure
from experiments.reporting.stream import stream_pictures
from tests.helpers.stream_answers import BASE, CHECKPOINTS, RIGHT, config


def test_the_picture_holds_the_matrix_of_each_arm() -> None:
    arms = {"full 1e-3": CHECKPOINTS, "stopped": {2: CHECKPOINTS[2]}, "ewc 1e-3": CHECKPOINTS}
    ((title, figure),) = stream_pictures(config(), BASE, arms)
    assert title == "Tasks after each stage"
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["full 1e-3", "ewc 1e-3"]
    numbers = [cell.get_text() for cell in figure.axes[0].texts]
    assert numbers == [f"{count / 10:.2f}".removeprefix("0") for row in RIGHT for count in row]
    rows = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    assert rows == ["base model", "chain sum", "gcd", "spell backward"]
    frames = [patch.get_xy() for patch in figure.axes[0].patches]
    assert frames == [(0, 1), (1, 2), (2, 3)]
    assert image_bytes(figure, "png").startswith(b"\x89PNG")
    assert stream_pictures(config(), BASE, {"stopped": {2: CHECKPOINTS[2]}}) == []


@pytest.mark.parametrize("arms", [1, 3, 4])
def test_any_number_of_arms_is_drawn_on_one_scale(arms: int) -> None:
    low, high = np.full((3, 2), 0.01), np.full((3, 2), 0.5)
    matrices = {f"arm {i}": high if i == arms - 1 else low for i in range(arms)}
    figure = stream_figure(matrices, ["a", "b"], "title")
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert len(shown) == arms
    assert {axes.collections[0].get_clim() for axes in shown} == {(0.0, 0.5)}
    with pytest.raises(ValueError, match="no arm has a matrix to draw"):
        stream_figure({}, ["a"], "title")
