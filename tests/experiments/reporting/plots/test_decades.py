"""Axes for values that are far apart."""

from __future__ import annotations

import math

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from experiments.reporting.plots.decades import far_apart, log_axis


@pytest.mark.parametrize(
    ("values", "far"),
    [([0.1, 1.0], True), ([0.5, 12], True), ([0.2, 1.0], False), ([0, 5], False), ([-1, 20], False), ([], False)],
)
def test_values_a_decade_apart_are_far_apart_if_all_have_a_logarithm(values: list[float], far: bool) -> None:
    assert far_apart(values) is far


@pytest.mark.parametrize("which", ["x", "y"])
def test_a_log_axis_has_plain_numbers(which: str) -> None:
    figure = Figure()
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot([0.01, 20], [0.01, 20])
    log_axis(axes, which)  # type: ignore[arg-type]
    figure.draw_without_rendering()
    axis = axes.xaxis if which == "x" else axes.yaxis
    assert (axes.get_xscale(), axes.get_yscale()).count("log") == 1
    texts = {label.get_text() for label in axis.get_majorticklabels()} - {""}
    assert {"0.01", "0.1", "1", "10"} <= texts
    assert all(math.log10(float(text)) % 1 == 0 for text in texts)


def test_a_short_log_axis_has_numbers_between_the_decades() -> None:
    """With one decade in view, a single number would leave the others to guess."""
    figure = Figure()
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot([0.5, 6], [1, 2])
    log_axis(axes)
    figure.draw_without_rendering()
    assert {"0.5", "1", "2", "5"} <= {label.get_text() for label in axes.xaxis.get_majorticklabels()}
